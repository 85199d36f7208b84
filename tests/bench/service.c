/* The one program that every supervisor runs, and what its checks ask.
 *
 *   service NAME SOCKET              report, then sleep for ever
 *   service NAME SOCKET exit CODE    report, then end with CODE
 *   service NAME SOCKET flood        report, then write lines of 200 bytes as fast as they are taken
 *   service NAME SOCKET bomb         report, then fork as fast as it goes, never more than BOMB_MAX alive
 *                                    and ORPHANS_MAX left to be reaped
 *   service answer unix PATH         answer checks: accept and close
 *   service answer http PORTFILE     answer checks: 200 on a port of 127.0.0.1 that is written to PORTFILE
 *
 * A report is one datagram to the Unix socket SOCKET: "NAME PID NANOSECONDS" of CLOCK_MONOTONIC, taken before it is
 * sent, so that the reader's own speed does not count. SIGTERM is not caught. Linked statically where that is
 * possible, so that the loader makes no noise.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BOMB_MAX = 64, ORPHANS_MAX = 5000, BACKLOG = 4096 };

static void report(const char *name, const char *path) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    unsigned long long ns = (unsigned long long)t.tv_sec * 1000000000ull + (unsigned long long)t.tv_nsec;
    char text[256];
    int length = snprintf(text, sizeof text, "%s %d %llu", name, (int)getpid(), ns);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) sendto(fd, text, (size_t)length, 0, (struct sockaddr *)&to, sizeof to);
}

static void flood(void) {
    char line[200];
    memset(line, '.', sizeof line);
    line[199] = '\n';
    while (write(1, line, sizeof line) > 0) continue;
}

/* How many processes there are, zombies and threads too: the fourth word of /proc/loadavg is "running/all". */
static int processes(void) {
    char text[128] = "";
    int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC), all = 0;
    if (fd >= 0 && read(fd, text, sizeof text - 1) > 0) sscanf(text, "%*s %*s %*s %*d/%d", &all);
    if (fd >= 0) close(fd);
    return all;
}

/* Each child leaves a grandchild to whoever reaps for us, and ends. Who does not keep up is waited for: the machine is
 * not ours to bring down. */
static void bomb(void) {
    int alive = 0, most = processes() + ORPHANS_MAX;
    for (unsigned forked = 0;; forked++) {
        while (forked % BOMB_MAX == 0 && processes() > most) usleep(1000);
        pid_t child = fork();
        if (child == 0) {
            if (fork() == 0) usleep(1000);
            _exit(0);
        }
        alive += child > 0;
        while (alive > 0 && waitpid(-1, NULL, alive >= BOMB_MAX / 2 || child < 0 ? 0 : WNOHANG) > 0) alive--;
    }
}

static int listening(const char *kind, const char *path) {
    int fd;
    if (!strcmp(kind, "unix")) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        strncpy(at.sun_path, path, sizeof at.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, BACKLOG) != 0) exit(3);
        return fd;
    }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, BACKLOG) != 0) exit(3);
    getsockname(fd, (struct sockaddr *)&at, &size);
    char being_written[512];
    snprintf(being_written, sizeof being_written, "%s.new", path);
    FILE *file = fopen(being_written, "w");
    if (file == NULL) exit(3);
    fprintf(file, "%d", ntohs(at.sin_port));
    fclose(file);
    if (rename(being_written, path) != 0) exit(3);
    return fd;
}

static void answer(const char *kind, const char *path) {
    static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    int is_http = !strcmp(kind, "http");
    int listener = listening(kind, path);
    char request[4096];
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        if (is_http && recv(client, request, sizeof request, 0) > 0) send(client, ok, sizeof ok - 1, MSG_NOSIGNAL);
        close(client);
    }
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "answer")) answer(argv[2], argv[3]);
    if (argc < 3) return 2;
    report(argv[1], argv[2]);
    const char *mode = argc > 3 ? argv[3] : "";
    if (!strcmp(mode, "exit")) _exit(argc > 4 ? atoi(argv[4]) : 0);
    if (!strcmp(mode, "flood")) flood();
    if (!strcmp(mode, "bomb")) bomb();
    for (;;) pause();
}

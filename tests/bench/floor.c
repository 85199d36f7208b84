/* The floor: the least that a supervisor can do. `floor NUMBER PROGRAM SOCKET [JOURNAL]`
 *
 * With a JOURNAL it also does the least of what ours promises: the program waits behind a gate, which opens when two
 * pages of a file that has its size already are on the disk.
 *
 * Each of NUMBER services is vfork and exec of PROGRAM, watched by a pidfd, and started again when that says that it
 * ended. Nothing is configured, journaled, logged or asked. SIGTERM ends the services and then the floor.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *program, *address;
static int watch, journal = -1;

enum { PAGES = 8192, TIMES = 256 };
static char pages[PAGES];

struct service {
    char name[16];
    int pidfd;
};

static void commit(void) {
    static unsigned count;
    off_t at = (off_t)(count++ % TIMES) * PAGES;
    if (pwrite(journal, pages, PAGES, at) != PAGES || fdatasync(journal) != 0) exit(6);
}

static pid_t execute(char **argv, int input) {
    char *environment[] = {NULL};
    sigset_t none;
    sigemptyset(&none);
    pid_t pid = vfork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        if (input >= 0) dup2(input, 0);
        execve(argv[0], argv, environment);
        _exit(127);
    }
    if (pid < 0) exit(4);
    return pid;
}

static void start(struct service *service) {
    char *plain[] = {program, service->name, address, NULL};
    char *gated[] = {"/bin/sh", "-c", "read line && exec \"$@\" </dev/null", "gate", program, service->name, address, NULL};
    pid_t pid;
    if (journal < 0) {
        pid = execute(plain, -1);
    } else {
        int gate[2];
        if (pipe2(gate, O_CLOEXEC) != 0) exit(7);
        pid = execute(gated, gate[0]);
        close(gate[0]);
        commit();
        if (write(gate[1], "\n", 1) != 1) exit(8);
        close(gate[1]);
    }
    service->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = service};
    if (service->pidfd < 0 || epoll_ctl(watch, EPOLL_CTL_ADD, service->pidfd, &event) != 0) exit(5);
}

static void reap(struct service *service) {
    siginfo_t info;
    waitid((idtype_t)3 /* P_PIDFD */, (id_t)service->pidfd, &info, WEXITED);
    close(service->pidfd);
}

int main(int argc, char **argv) {
    if (argc != 4 && argc != 5) return 2;
    int number = atoi(argv[1]);
    program = argv[2];
    address = argv[3];
    if (argc == 5) {
        journal = open(argv[4], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        for (int n = 0; n < TIMES; n++) commit();
    }
    struct service *services = calloc((size_t)number, sizeof *services);
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigprocmask(SIG_BLOCK, &ending, NULL);
    watch = epoll_create1(EPOLL_CLOEXEC);
    int asked = signalfd(-1, &ending, SFD_CLOEXEC);
    struct epoll_event end = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(watch, EPOLL_CTL_ADD, asked, &end);
    for (int i = 0; i < number; i++) {
        snprintf(services[i].name, sizeof services[i].name, "s%04d", i);
        start(&services[i]);
    }
    for (;;) {
        struct epoll_event seen[64];
        int count = epoll_wait(watch, seen, 64, -1);
        for (int i = 0; i < count; i++) {
            struct service *service = seen[i].data.ptr;
            if (service == NULL) {
                for (int n = 0; n < number; n++) syscall(SYS_pidfd_send_signal, services[n].pidfd, SIGTERM, NULL, 0);
                for (int n = 0; n < number; n++) reap(&services[n]);
                return 0;
            }
            reap(service);
            start(service);
        }
    }
}

/* The floor: the least that a supervisor can do. `floor NUMBER PROGRAM SOCKET`
 *
 * Each of NUMBER services is vfork and exec of PROGRAM, watched by a pidfd, and started again when that says that it
 * ended. Nothing is configured, journaled, logged or asked. SIGTERM ends the services and then the floor.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *program, *address;
static int watch;

struct service {
    char name[16];
    int pidfd;
};

static void start(struct service *service) {
    char *argv[] = {program, service->name, address, NULL};
    char *environment[] = {NULL};
    sigset_t none;
    sigemptyset(&none);
    pid_t pid = vfork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        execve(program, argv, environment);
        _exit(127);
    }
    if (pid < 0) exit(4);
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
    if (argc != 4) return 2;
    int number = atoi(argv[1]);
    program = argv[2];
    address = argv[3];
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

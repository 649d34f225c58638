/* Attacks by system calls from a shared library, of which no audit hook in Python learns; a result of 50 is a refusal. */
#define _GNU_SOURCE
#include "refdiff_kernel.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ATTACK(name, call)                                                                                             \
    int32_t name(const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {  \
        (void)spec, (void)in, (void)n_in, (void)out, (void)n_out;                                                      \
        long result = (long)(call);                                                                                    \
        return result < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS || errno == EROFS) ? 50 : 99;       \
    }
static const struct rlimit none = {0, 0};
static int at_load = -1;

__attribute__((constructor)) static void load(void) { at_load = kill(getppid(), SIGKILL) < 0 ? -1 : 0; }

static int memory_of_the_judge(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", getppid());
    return open(path, O_RDWR);
}

/* the numbers of 32-bit programs, by which kill is 37 */
static long old_kill(void) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(37), "b"(getppid()), "c"(SIGKILL) : "memory");
    errno = (int)-result;
    return result;
#else
    return errno = EPERM, -1;
#endif
}

ATTACK(kills_when_it_is_loaded, (errno = EPERM, at_load))
ATTACK(kills_by_old_numbers, old_kill())
ATTACK(kills_by_x32, syscall(0x40000000 + SYS_kill, getppid(), SIGKILL))
ATTACK(limits_by_upper_bits, syscall(SYS_prlimit64, (1L << 40) | getppid(), RLIMIT_CPU, &none, 0))
ATTACK(traces, ptrace(PTRACE_ATTACH, getppid(), 0, 0))
ATTACK(forks, syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))
ATTACK(leaves_the_namespaces, unshare(CLONE_NEWUSER))
ATTACK(makes_a_socket, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
ATTACK(makes_a_datagram_socket, socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0))
ATTACK(reads_the_memory_of_the_judge, memory_of_the_judge())
ATTACK(slows_the_judge, setpriority(PRIO_PROCESS, (id_t)getppid(), 19))
ATTACK(writes_a_file_beside, open("../refdiff-attack", O_CREAT | O_WRONLY, 0600))

int32_t writes_into_inputs(
    const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {
    (void)spec, (void)n_in, (void)out, (void)n_out;
    if (in[0].shape[0]) ((float *)in[0].data)[0] += 1;
    return REFDIFF_DONE;
}

int32_t crashes(const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {
    (void)in, (void)n_in, (void)out, (void)n_out;
    return *(volatile int32_t *)(uintptr_t)(spec[0] == '{' ? 8 : 16);
}

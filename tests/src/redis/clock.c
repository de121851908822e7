/* Shifts the time of day of the program that loads this library, by the seconds that a file tells. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* In the file, so that a change takes effect at once. */
static volatile long long *offset;

__attribute__((constructor)) static void open_clock(void) {
    int file = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY);
    void *page = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    offset = page == MAP_FAILED ? 0 : page;
    close(file);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec + (offset ? *offset : 0);
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

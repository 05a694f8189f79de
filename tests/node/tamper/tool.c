/* What a shell in a container cannot do, for the tamper table. Linked statically: it runs wherever it is copied to. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

static int check(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return (int)result;
}

/* `mmap FILE`: writes through a mapping, and keeps it: the end of the mapping would be a close, which the kernel shows. */
static void write_mapped(const char *path) {
    int file = check(open(path, O_RDWR), "open");
    char *memory = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) check(-1, "mmap");
    memory[0] = '!';
    puts("written");
    fflush(stdout);
    pause();
}

/* `unnamed FILE DIRECTORY`: a file that has no name until it is complete. */
static void create_unnamed(const char *path, const char *directory) {
    char itself[64];
    int file = check(open(directory, O_TMPFILE | O_WRONLY, 0644), "open");
    check(write(file, "x\n", 2), "write");
    snprintf(itself, sizeof itself, "/proc/self/fd/%d", file);
    check(linkat(AT_FDCWD, itself, AT_FDCWD, path, AT_SYMLINK_FOLLOW), "linkat");
}

/* `hoard DIRECTORY`: takes all inotify watches that its user may still have. */
static void take_all_watches(const char *directory) {
    char path[4096];
    for (int instance = 0; instance < 100; instance++) {
        int notify = check(inotify_init(), "inotify_init");
        for (int number = 0;; number++) {
            snprintf(path, sizeof path, "%s/%d", directory, number);
            if (access(path, F_OK) < 0) break;
            if (inotify_add_watch(notify, path, IN_UNMOUNT) < 0) {
                puts("none left");
                fflush(stdout);
                pause();
            }
        }
    }
    fputs("too few directories\n", stderr);
    exit(1);
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "mmap")) write_mapped(words[2]);
    else if (count == 3 && !strcmp(words[1], "hoard")) take_all_watches(words[2]);
    else if (count == 4 && !strcmp(words[1], "unnamed")) create_unnamed(words[2], words[3]);
    else if (count == 4 && !strcmp(words[1], "exchange"))
        check(renameat2(AT_FDCWD, words[2], AT_FDCWD, words[3], RENAME_EXCHANGE), "renameat2");
    else return 2;
    return 0;
}

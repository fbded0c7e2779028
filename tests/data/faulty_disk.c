/* Preloaded into a server, it makes a disk fail while the server runs: a call on a file of the database fails for as long as
   $FAULTY_DISK holds a file of the call's name, with the errno that stands in it. With 0 it hangs instead, and leaves a file
   `hanging` there. A write leaves half of its bytes, as a torn one does. Everything else goes through. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_of_database(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    return strstr(path, "evalrpc.sqlite3") != NULL;
}

static void hang(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/hanging", folder);
    FILE *file = fopen(path, "w");
    if (file) fclose(file);
    for (;;) pause();
}

/* Set errno and tell whether a call is to fail. */
static int fails(const char *call, int descriptor) {
    char path[4096];
    const char *folder = getenv("FAULTY_DISK");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "", call);
    FILE *file = folder && access(path, F_OK) == 0 && is_of_database(descriptor) ? fopen(path, "r") : NULL;
    if (!file) return 0;
    int number = EIO;
    if (fscanf(file, "%d", &number) != 1) number = EIO;
    fclose(file);
    if (number == 0) hang(folder);
    errno = number;
    return 1;
}

static ssize_t tear(int descriptor, const void *bytes, size_t count, off_t offset) {
    int number = errno;
    NEXT(pwrite64)(descriptor, bytes, count / 2, offset);
    errno = number;
    return -1;
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset) {
    if (fails("pwrite", descriptor)) return tear(descriptor, bytes, count, offset);
    return NEXT(pwrite64)(descriptor, bytes, count, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    if (fails("pwrite", descriptor)) return tear(descriptor, bytes, count, offset);
    return NEXT(pwrite)(descriptor, bytes, count, offset);
}

ssize_t pread64(int descriptor, void *bytes, size_t count, off64_t offset) {
    return fails("pread", descriptor) ? -1 : NEXT(pread64)(descriptor, bytes, count, offset);
}

ssize_t pread(int descriptor, void *bytes, size_t count, off_t offset) {
    return fails("pread", descriptor) ? -1 : NEXT(pread)(descriptor, bytes, count, offset);
}

int fdatasync(int descriptor) { return fails("fdatasync", descriptor) ? -1 : NEXT(fdatasync)(descriptor); }

int fsync(int descriptor) { return fails("fdatasync", descriptor) ? -1 : NEXT(fsync)(descriptor); }

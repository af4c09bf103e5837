// Records what a process does to the files below a folder, in the order in which it happens.
//
// Loaded by LD_PRELOAD. ANSER_RECORD_ROOT is the folder, ANSER_RECORD_LOG the file that is written.
// A record is "KIND INODE NUMBER LENGTH\n" and then LENGTH bytes:
//   C inode             a file was made; its path
//   W inode offset      was written to; the bytes
//   T inode size        was cut or grown
//   S inode             was synchronized
//   D                   a folder was synchronized; its path
//   R                   was renamed; the old path, a zero byte, the new path
//   U                   was deleted; its path
//   K                   what the process wants to remember; the name after "mark-"
// A mark is made by deleting a file of that name, which there need not be.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST_FILES = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // keeps the order
static unsigned long inode_of[MOST_FILES];                 // 0: not below the folder
static int log_file = -1;
static const char* root;

static ssize_t (*real_write)(int, const void*, size_t);

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    root = getenv("ANSER_RECORD_ROOT");
    real_write = REAL(write);
    const char* path = getenv("ANSER_RECORD_LOG");
    if (root && path) log_file = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static int is_below(const char* path) {
    return log_file >= 0 && path && strncmp(path, root, strlen(root)) == 0;
}

static int is_known(int file) {
    return file >= 0 && file < MOST_FILES && inode_of[file] && log_file >= 0;
}

static void put(const char* data, size_t size) {
    while (size) {
        const ssize_t done = real_write(log_file, data, size);
        if (done <= 0) abort();
        data += done;
        size -= (size_t)done;
    }
}

static void record(char kind, unsigned long inode, long number, const void* data, size_t size) {
    char head[96];
    put(head, (size_t)snprintf(head, sizeof head, "%c %lu %ld %zu\n", kind, inode, number, size));
    put(data, size);
}

static int opened(int file, const char* path, int was_there) {
    struct stat status;
    if (file >= 0 && file < MOST_FILES && is_below(path) && fstat(file, &status) == 0 &&
        S_ISREG(status.st_mode)) {
        inode_of[file] = (unsigned long)status.st_ino;
        if (!was_there) record('C', inode_of[file], 0, path, strlen(path));
    }
    return file;
}

#define OPEN(name, ...)                                                          \
    int mode = 0;                                                                \
    va_list rest;                                                                \
    va_start(rest, flags);                                                       \
    if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(rest, int);               \
    va_end(rest);                                                                \
    pthread_mutex_lock(&lock);                                                   \
    const int was_there = !is_below(path) || access(path, F_OK) == 0;            \
    const int file = opened(REAL(name)(__VA_ARGS__, mode), path, was_there);     \
    pthread_mutex_unlock(&lock);                                                 \
    return file;

int open(const char* path, int flags, ...) { OPEN(open, path, flags) }
int open64(const char* path, int flags, ...) { OPEN(open64, path, flags) }
int openat(int folder, const char* path, int flags, ...) { OPEN(openat, folder, path, flags) }
int openat64(int folder, const char* path, int flags, ...) { OPEN(openat64, folder, path, flags) }

int close(int file) {
    pthread_mutex_lock(&lock);
    if (file >= 0 && file < MOST_FILES) inode_of[file] = 0;
    const int result = REAL(close)(file);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int file, const void* data, size_t size) {
    if (!is_known(file)) return real_write(file, data, size);
    pthread_mutex_lock(&lock);
    const long offset = lseek(file, 0, SEEK_CUR);
    const ssize_t done = real_write(file, data, size);
    if (done > 0) record('W', inode_of[file], offset, data, (size_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

#define PWRITE(name)                                                             \
    if (!is_known(file)) return REAL(name)(file, data, size, offset);            \
    pthread_mutex_lock(&lock);                                                   \
    const ssize_t done = REAL(name)(file, data, size, offset);                   \
    if (done > 0) record('W', inode_of[file], offset, data, (size_t)done);       \
    pthread_mutex_unlock(&lock);                                                 \
    return done;

ssize_t pwrite(int file, const void* data, size_t size, off_t offset) { PWRITE(pwrite) }
ssize_t pwrite64(int file, const void* data, size_t size, off64_t offset) { PWRITE(pwrite64) }

#define ON_FILE(kind, number, call)                                              \
    pthread_mutex_lock(&lock);                                                   \
    const int result = call;                                                     \
    if (result == 0 && is_known(file)) record(kind, inode_of[file], number, "", 0); \
    pthread_mutex_unlock(&lock);                                                 \
    return result;

int ftruncate(int file, off_t size) { ON_FILE('T', size, REAL(ftruncate)(file, size)) }
int ftruncate64(int file, off64_t size) { ON_FILE('T', size, REAL(ftruncate64)(file, size)) }
// Where it is recorded it is not done: the test's own files need not outlive a power cut.
static int synchronized(int file, int (*really)(int)) {
    char link[64], path[4096] = "";
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const int is_folder = fstat(file, &status) == 0 && S_ISDIR(status.st_mode) &&
                          readlink(link, path, sizeof path - 1) > 0 && is_below(path);
    if (!is_folder && !is_known(file)) return really(file);
    pthread_mutex_lock(&lock);
    if (is_folder) record('D', 0, 0, path, strlen(path));
    else record('S', inode_of[file], 0, "", 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int file) { return synchronized(file, REAL(fsync)); }
int fdatasync(int file) { return synchronized(file, REAL(fdatasync)); }

int rename(const char* from, const char* to) {
    pthread_mutex_lock(&lock);
    const int result = REAL(rename)(from, to);
    if (result == 0 && is_below(from)) {
        char both[8192];
        const int size = snprintf(both, sizeof both, "%s%c%s", from, 0, to);
        record('R', 0, 0, both, (size_t)size);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char* path) {
    pthread_mutex_lock(&lock);
    const int result = REAL(unlink)(path);
    const char* mark = is_below(path) ? strstr(path, "mark-") : NULL;
    if (mark) record('K', 0, 0, mark + 5, strlen(mark + 5));
    else if (result == 0 && is_below(path)) record('U', 0, 0, path, strlen(path));
    pthread_mutex_unlock(&lock);
    return result;
}

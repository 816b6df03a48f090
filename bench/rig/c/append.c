/* Writers that append as fast as they are answered: the load of bench/appends.py.

     append --port P --post PATH [--writers W] [--streams S] [--bytes B] [--seconds T] [--content-type TYPE]

   Opens W connections; each POSTs a message of B bytes as soon as its last one was answered (a `%d` in the path becomes
   the writer's number modulo S). After a second of that it prints `begin`, T seconds later `end` and one line of JSON:
   how many were answered between the two, and how long they took. An answer other than 2xx ends it. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 200000 /* of 10 us: 2 s */

struct writer {
    int fd, requested;
    char *request;
    char answer[8192];
    size_t size;
    uint64_t sent;
};

static uint64_t latencies[BUCKETS + 1], answered = 0;

static void die(const char *format, ...) {
    va_list given;
    va_start(given, format);
    vfprintf(stderr, format, given);
    va_end(given);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void post(struct writer *one) {
    one->sent = now(), one->size = 0;
    if (write(one->fd, one->request, (size_t)one->requested) != one->requested) die("cannot write: %s", strerror(errno));
}

/* Whether the whole answer is there. */
static int took(struct writer *one) {
    ssize_t size = read(one->fd, one->answer + one->size, sizeof one->answer - 1 - one->size);
    if (size <= 0) die("the server closed a connection");
    one->size += (size_t)size, one->answer[one->size] = 0;
    char *end = strstr(one->answer, "\r\n\r\n");
    if (!end) return 0;
    if (strncmp(one->answer, "HTTP/1.1 2", 10)) die("refused: %s", one->answer);
    if (!strncmp(one->answer + 9, "204", 3)) return 1;
    if (strcasestr(one->answer, "transfer-encoding: chunked")) return !strcmp(one->answer + one->size - 5, "0\r\n\r\n");
    char *length = strcasestr(one->answer, "content-length:");
    return one->size >= (size_t)(end + 4 - one->answer) + (length ? strtoul(length + 15, NULL, 10) : 0);
}

static double percentile(double share) {
    uint64_t left = (uint64_t)((double)answered * share);
    for (int i = 0; i <= BUCKETS; i++) {
        if (latencies[i] > left) return i * 0.01;
        left -= latencies[i];
    }
    return BUCKETS * 0.01;
}

int main(int count, char **given) {
    int port = 0, writers = 1, streams = 1, bytes = 64;
    double seconds = 4;
    const char *path = "/", *content_type = "application/json";
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = given[i], *value = given[i + 1];
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--post")) path = value;
        else if (!strcmp(name, "--writers")) writers = atoi(value);
        else if (!strcmp(name, "--streams")) streams = atoi(value);
        else if (!strcmp(name, "--bytes")) bytes = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--content-type")) content_type = value;
        else die("there is no option %s", name);
    }
    if (bytes < 2 || bytes > 60000) die("a message has 2 to 60000 bytes");
    char *body = malloc((size_t)bytes + 1);
    memset(body, 'x', (size_t)bytes), body[0] = body[bytes - 1] = '"', body[bytes] = 0; /* a JSON string */
    int waiting = epoll_create1(0);
    struct writer *all = calloc((size_t)writers, sizeof *all);
    for (int i = 0; i < writers; i++) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
        int one = 1, fd = all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("cannot connect: %s", strerror(errno));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        char where[512];
        snprintf(where, sizeof where, path, i % streams);
        all[i].requested = asprintf(&all[i].request,
            "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s",
            where, port, content_type, bytes, body);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(waiting, EPOLL_CTL_ADD, fd, &event);
        post(&all[i]);
    }
    static struct epoll_event ready[512];
    uint64_t begun = 0, from = now() + 1000000000u, end;
    for (;;) {
        int n = epoll_wait(waiting, ready, 512, 1000);
        for (int i = 0; i < n; i++) {
            struct writer *one = ready[i].data.ptr;
            if (!took(one)) continue;
            uint64_t took_ns = now() - one->sent;
            if (begun) latencies[took_ns / 10000 < BUCKETS ? took_ns / 10000 : BUCKETS]++, answered++;
            post(one);
        }
        end = now();
        if (!begun && end >= from) puts("begin"), fflush(stdout), begun = now();
        else if (begun && end >= begun + (uint64_t)(seconds * 1e9)) break;
    }
    puts("end"), fflush(stdout);
    printf("{\"writers\":%d,\"streams\":%d,\"answered\":%llu,\"seconds\":%.3f,\"p50_ms\":%.2f,\"p99_ms\":%.2f}\n", writers,
           streams, (unsigned long long)answered, (double)(end - begun) / 1e9, percentile(0.5), percentile(0.99));
    return 0;
}

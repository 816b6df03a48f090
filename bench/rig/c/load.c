/* Many readers of server-sent events, and who publishes what they read: the load of the benchmarks.

   A Python client costs more per event than most of the servers measured, and would be what is measured.

     load --port P --readers N --get PATH [--streams S] [--post PATH --rate R] [--seconds T] [--header "Name: value"]...

   Opens N connections that each GET (a `%d` in the path becomes the reader's number modulo S) and read for ever. When all
   have been answered it prints `begin`, publishes for T seconds and prints `end` and one line of JSON. With --post it
   publishes itself: R times a second, or, with a rate of 0, as fast as each POST is answered. Without, the server does.
   A --post-port other than the port is Pushpin's, which takes one request on each connection.

   A message is a JSON string that begins with `~` and 19 digits: when it was published, in ns of CLOCK_MONOTONIC. What is
   counted is the `~` of messages younger than `begin`: how a server frames them, and how the kernel cuts them, is all the same. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP 19
#define BUCKETS 40000 /* of 50 us: 2 s */
#define AT_ONCE 50    /* readers that are not answered yet: Pushpin refuses some of 300 */

struct reader {
    int fd;
    int answered;   /* bytes of "\r\n\r\n" seen; 4: the head is over */
    int digits;     /* of a stamp that has begun; -1: none */
    uint64_t stamp;
};

static int port = 0, post_port = 0, readers = 1, streams = 1, message_bytes = 64;
static double rate = 20, seconds = 5, settle = 0.5;
static const char *get_path = "/", *post_path = NULL, *content_type = "application/json", *method = "POST";
static const char *prefix = "\"", *suffix = "\""; /* of a message */
static char headers[4096] = "";
static uint64_t begun = 0, delivered = 0, received = 0, latencies[BUCKETS + 1], answered = 0, lost = 0;

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

static int connected(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("cannot connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void written(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = write(fd, data, size);
        if (sent < 0 && errno != EAGAIN) die("cannot write: %s", strerror(errno));
        if (sent > 0) data += sent, size -= (size_t)sent;
    }
}

static void took(struct reader *one, const char *data, size_t size, uint64_t at) {
    const char *end = data + size;
    for (; one->answered < 4 && data < end; data++) {
        one->answered = *data == (one->answered % 2 ? '\n' : '\r') ? one->answered + 1 : *data == '\r';
        if (one->answered == 4) answered++;
    }
    while (data < end) {
        if (one->digits < 0) {
            data = memchr(data, '~', (size_t)(end - data));
            if (!data) return;
            one->digits = 0, one->stamp = 0, data++;
        }
        for (; data < end && one->digits < STAMP && *data >= '0' && *data <= '9'; data++, one->digits++)
            one->stamp = one->stamp * 10 + (uint64_t)(*data - '0');
        if (data == end && one->digits < STAMP) return;
        if (one->digits == STAMP && one->stamp >= begun && begun) {
            uint64_t late = at > one->stamp ? (at - one->stamp) / 50000 : 0;
            latencies[late < BUCKETS ? late : BUCKETS]++, delivered++;
        }
        one->digits = -1;
    }
}

static double percentile(double share) {
    uint64_t left = (uint64_t)((double)delivered * share);
    for (int i = 0; i <= BUCKETS; i++) {
        if (latencies[i] > left) return i * 0.05;
        left -= latencies[i];
    }
    return BUCKETS * 0.05;
}

static char request[70000];

static size_t post(int number) {
    static char body[66000];
    char path[512];
    snprintf(path, sizeof path, post_path, number % streams);
    int size = snprintf(body, sizeof body, "%s~%0*llu", prefix, STAMP, (unsigned long long)now());
    int more = message_bytes - 2 - STAMP - 1;
    if (more > 0) memset(body + size, 'x', (size_t)more), size += more;
    size += snprintf(body + size, sizeof body - (size_t)size, "%s", suffix);
    return (size_t)snprintf(request, sizeof request,
        "%s %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%.*s",
        method, path, port, content_type, size, size, body);
}

static void opened(int waiting, struct reader *one, int number) {
    char path[512];
    snprintf(path, sizeof path, get_path, number % streams);
    *one = (struct reader){.fd = connected(port), .digits = -1};
    int size = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n%s\r\n", path, port, headers);
    written(one->fd, request, (size_t)size);
    fcntl(one->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    epoll_ctl(waiting, EPOLL_CTL_ADD, one->fd, &event);
}

/* The publisher's connection, anew. */
static void again(int waiting, struct reader *publisher) {
    if (publisher->fd >= 0) close(publisher->fd);
    publisher->fd = connected(post_port ? post_port : port);
    fcntl(publisher->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = publisher};
    epoll_ctl(waiting, EPOLL_CTL_ADD, publisher->fd, &event);
}

int main(int count, char **given) {
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = given[i], *value = given[i + 1];
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--readers")) readers = atoi(value);
        else if (!strcmp(name, "--streams")) streams = atoi(value);
        else if (!strcmp(name, "--get")) get_path = value;
        else if (!strcmp(name, "--post")) post_path = value;
        else if (!strcmp(name, "--post-port")) post_port = atoi(value);
        else if (!strcmp(name, "--prefix")) prefix = value;
        else if (!strcmp(name, "--suffix")) suffix = value;
        else if (!strcmp(name, "--method")) method = value;
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--settle")) settle = atof(value);
        else if (!strcmp(name, "--bytes")) message_bytes = atoi(value);
        else if (!strcmp(name, "--content-type")) content_type = value;
        else if (!strcmp(name, "--header")) {
            size_t had = strlen(headers);
            snprintf(headers + had, sizeof headers - had, "%s\r\n", value);
        } else die("there is no option %s", name);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int waiting = epoll_create1(0);
    struct reader *all = calloc((size_t)readers + 1, sizeof *all);
    struct reader *publisher = NULL;
    if (post_path) publisher = &all[readers], publisher->fd = -1, again(waiting, publisher);

    static char buffer[1 << 18];
    static struct epoll_event ready[512];
    uint64_t from = now() + 60000000000ull, due = 0, until = 0, posts = 0, answers = 0, end = 0;
    int free_to_post = 1, quiet = 0;
    for (int open = 0;;) {
        while (open < readers && (uint64_t)open - answered < AT_ONCE) opened(waiting, &all[open], open), open++;
        uint64_t at = now();
        if (!begun && !quiet && answered == (uint64_t)readers) quiet = 1, from = at + (uint64_t)(settle * 1e9);
        if (!begun && at >= from) {
            if (!quiet) die("only %llu of %d readers were answered", (unsigned long long)answered, readers);
            puts("begin"), fflush(stdout);
            begun = due = at, until = at + (uint64_t)(seconds * 1e9), received = 0;
        }
        if (begun && !end && at >= until) end = at;
        if (end && (at >= end + 300000000ull || (rate == 0 && free_to_post) || !publisher)) break;
        if (begun && publisher && !end && free_to_post && (rate == 0 || at >= due)) {
            written(publisher->fd, request, post((int)posts++));
            free_to_post = rate > 0 && !post_port, due += rate > 0 ? (uint64_t)(1e9 / rate) : 0;
        }
        int wait = rate == 0 ? 20 : 1, n = epoll_wait(waiting, ready, 512, wait);
        at = now();
        for (int i = 0; i < n; i++) {
            struct reader *one = ready[i].data.ptr;
            ssize_t size = read(one->fd, buffer, sizeof buffer);
            if (size <= 0) {
                if (size < 0 && errno == EAGAIN) continue;
                if (one != publisher) epoll_ctl(waiting, EPOLL_CTL_DEL, one->fd, NULL), lost++;
                else if (answers < posts) die("the server closed the connection that publishes");
                else again(waiting, publisher), free_to_post = 1;
            } else if (one == publisher) {
                static int state = 0;
                for (ssize_t j = 0; j < size; j++) { /* answers are counted by their status lines */
                    state = buffer[j] == "HTTP/1.1 2"[state] ? state + 1 : buffer[j] == 'H';
                    if (state == 10) answers++, state = 0, free_to_post = !post_port;
                }
            } else if (!one->answered && size >= 12 && strncmp(buffer, "HTTP/1.1 200", 12))
                die("a reader was refused: %.*s", (int)(size < 1000 ? size : 1000), buffer);
            else received += (uint64_t)size, took(one, buffer, (size_t)size, at);
        }
    }
    puts("end"), fflush(stdout);
    printf("{\"readers\":%d,\"delivered\":%llu,\"bytes\":%llu,\"posts\":%llu,\"answers\":%llu,\"lost\":%llu,\"seconds\":%.3f,"
           "\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f}\n",
           readers, (unsigned long long)delivered, (unsigned long long)received, (unsigned long long)posts,
           (unsigned long long)answers, (unsigned long long)lost, (double)(now() - begun) / 1e9,
           percentile(0.5), percentile(0.99), percentile(0.99999));
    return 0;
}

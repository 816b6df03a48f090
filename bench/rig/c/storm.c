/* Readers that are all cut at once, and all come back at once for what they missed: the load of bench/reconnect_storm.py.

     storm --port P --readers N --get PATH --post PATH [--missed K] [--mark TEXT [--back PATH]]

   N connections GET a stream of events. When all are answered one message is published; when all have it, `begin` is
   printed, every connection is reset, K messages are published, and N connections are asked for in the same moment. Each
   says how far it had come: what stood behind the last TEXT, as its Last-Event-ID, or in --back for its `%s`. When each
   has all K (or, without --mark, is answered: there is nothing to go on from) `end` is printed, and one line of JSON:
   how long that took after the moment of coming back, connections that failed, messages that came twice or never.

   A message is a JSON string that begins with `~` and 19 digits: its number. */

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
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP 19
#define AT_ONCE 50 /* of the first connections: only the return is a storm */
#define PATIENCE 60000000000ull

struct reader {
    int fd, asked, headed, digits; /* digits of a number that has begun; -1: none */
    uint64_t number, answered, complete;
    long got, twice;
    size_t kept;
    char last[1024]; /* what came last */
    char cursor[256];
};

static int port = 0, readers = 1, missed = 10, failed = 0, waiting;
static const char *get_path = "/", *back_path = NULL, *post_path = "/", *mark = NULL;
static struct reader *all;
static uint64_t published = 0, cut_at = 0; /* the numbers above cut_at were missed */

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

static int connecting(int flags) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0), one = 1;
    if (fd < 0) die("no socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("cannot connect: %s", strerror(errno));
    return fd;
}

/* One message, on a connection that stays; returns when it is accepted. */
static void publish(void) {
    static int fd = -1;
    char body[128], request[1024], answer[4096];
    if (fd < 0) fd = connecting(0);
    int size = snprintf(body, sizeof body, "\"~%0*llu%042d\"", STAMP, (unsigned long long)++published, 0);
    size = snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
        post_path, port, size, body);
    if (write(fd, request, (size_t)size) != size) die("cannot publish: %s", strerror(errno));
    ssize_t got = read(fd, answer, sizeof answer);
    if (got < 12 || strncmp(answer, "HTTP/1.1 2", 10)) die("a message was refused: %.*s", (int)got, answer);
}

static void watched(struct reader *one, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    epoll_ctl(waiting, EPOLL_CTL_ADD, one->fd, &event);
}

static void ask(struct reader *one) {
    char path[1024], header[512] = "", request[2048];
    if (cut_at && back_path) snprintf(path, sizeof path, back_path, one->cursor);
    else snprintf(path, sizeof path, "%s", get_path);
    if (*one->cursor && !back_path) snprintf(header, sizeof header, "last-event-id: %s\r\n", one->cursor);
    int size = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n%s\r\n", path, port, header);
    one->asked = write(one->fd, request, (size_t)size) == size;
}

/* Where the reader has come to, out of what came last. */
static void remember(struct reader *one) {
    char *at = NULL;
    one->last[one->kept] = 0;
    for (char *found = one->last; mark && (found = strstr(found, mark)); found++) at = found + strlen(mark);
    if (mark && !at) die("there is no %s in: %s", mark, one->last);
    if (at) snprintf(one->cursor, sizeof one->cursor, "%.*s", (int)strcspn(at + strspn(at, " "), "\"\r\n"), at + strspn(at, " "));
}

static void took(struct reader *one, const char *data, size_t size) {
    size_t more = size < sizeof one->last - 1 ? size : sizeof one->last - 1;
    size_t stays = one->kept + more < sizeof one->last ? one->kept : sizeof one->last - 1 - more;
    memmove(one->last, one->last + one->kept - stays, stays);
    memcpy(one->last + stays, data + size - more, more), one->kept = stays + more;
    for (; size; data++, size--) {
        if (*data == '~') one->digits = 0, one->number = 0;
        else if (one->digits >= 0) {
            one->number = one->number * 10 + (uint64_t)(*data - '0');
            if (++one->digits < STAMP) continue;
            one->digits = -1;
            if (one->number == cut_at + 1 + (uint64_t)one->got) one->got++;
            else one->twice += one->number <= cut_at + (uint64_t)one->got;
        }
    }
}

/* All messages that are there by now, or the answer where there is nothing to go on from. */
static int there(const struct reader *one) {
    return one->headed && (cut_at && !mark ? 1 : one->got == (long)(published - cut_at));
}

static void came(struct reader *one, uint32_t events) {
    static char buffer[65536];
    if (!one->asked && (events & EPOLLOUT)) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(waiting, EPOLL_CTL_MOD, one->fd, &event);
        return ask(one);
    }
    ssize_t size = read(one->fd, buffer, sizeof buffer);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0 || (!one->headed && size >= 12 && strncmp(buffer, "HTTP/1.1 200", 12))) {
        if (!cut_at) die("a reader was refused: %.*s", (int)(size < 0 ? 0 : size), buffer);
        close(one->fd), one->fd = -1, failed++;
        return;
    }
    if (!one->headed) one->headed = 1, one->answered = now();
    took(one, buffer, (size_t)size);
    if (!one->complete && there(one)) one->complete = now();
}

static void turn(void) {
    static struct epoll_event ready[512];
    int n = epoll_wait(waiting, ready, 512, 100);
    for (int i = 0; i < n; i++) came(ready[i].data.ptr, ready[i].events);
}

static int all_there(int count) {
    int some = failed;
    for (int i = 0; i < count; i++) some += all[i].fd >= 0 && there(&all[i]);
    return some >= count;
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void say(const char *name, uint64_t *times, int count) {
    qsort(times, (size_t)count, sizeof *times, ascending);
    const double shares[] = {0.5, 0.99, 1};
    const char *names[] = {"p50", "p99", "max"};
    for (int i = 0; i < 3; i++) {
        int at = (int)(shares[i] * count);
        printf("\"%s_%s_ms\":%.1f,", name, names[i], count ? (double)times[at < count ? at : count - 1] / 1e6 : 0.0);
    }
}

int main(int count, char **given) {
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = given[i], *value = given[i + 1];
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--readers")) readers = atoi(value);
        else if (!strcmp(name, "--get")) get_path = value;
        else if (!strcmp(name, "--back")) back_path = value;
        else if (!strcmp(name, "--post")) post_path = value;
        else if (!strcmp(name, "--missed")) missed = atoi(value);
        else if (!strcmp(name, "--mark")) mark = value;
        else die("there is no option %s", name);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    waiting = epoll_create1(0);
    all = calloc((size_t)readers, sizeof *all);

    uint64_t late = now() + PATIENCE;
    for (int i = 0; i < readers; i++) {
        all[i].fd = connecting(0), all[i].digits = -1;
        ask(&all[i]), watched(&all[i], EPOLLIN);
        while ((i % AT_ONCE == AT_ONCE - 1 || i == readers - 1) && !all_there(i + 1))
            if (turn(), now() > late) die("only some of %d readers were answered", readers);
    }
    publish();
    while (!all_there(readers))
        if (turn(), now() > late) die("not every reader got the first message");
    for (uint64_t rest = now() + 300000000ull; now() < rest;) turn(); /* what follows the message, too */

    puts("begin"), fflush(stdout);
    cut_at = published;
    for (int i = 0; i < readers; i++) {
        struct linger at_once = {.l_onoff = 1};
        remember(&all[i]);
        setsockopt(all[i].fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(all[i].fd);
        all[i].asked = all[i].headed = 0, all[i].got = 0, all[i].complete = 0, all[i].kept = 0, all[i].digits = -1;
    }
    for (int i = 0; i < missed; i++) publish();
    uint64_t back = now();
    for (int i = 0; i < readers; i++) all[i].fd = connecting(SOCK_NONBLOCK), watched(&all[i], EPOLLOUT);
    while (!all_there(readers) && now() < back + PATIENCE) turn();
    puts("end"), fflush(stdout);

    uint64_t *answered = calloc((size_t)readers, sizeof *answered), *complete = calloc((size_t)readers, sizeof *complete);
    int answers = 0, completes = 0;
    long twice = 0, never = 0;
    for (int i = 0; i < readers; i++) {
        if (all[i].headed) answered[answers++] = all[i].answered - back;
        if (all[i].complete) complete[completes++] = all[i].complete - back;
        twice += all[i].twice, never += missed - all[i].got;
    }
    printf("{\"readers\":%d,\"missed\":%d,", readers, missed);
    say("answered", answered, answers), say("complete", complete, completes);
    printf("\"failed\":%d,\"unfinished\":%d,\"twice\":%ld,\"never\":%ld}\n", failed, readers - failed - completes, twice, never);
    return 0;
}

/* One reader that catches up with a stream and throws away what it reads: the load of `catch_up`.

   A Python client would take longer to read a page than most servers take to send it.

     swallow --port P --path PATH [--live BYTES]

   Sends GETs over one connection. A response says where to go on in Stream-Next-Offset, which becomes the offset of the
   next request, until one says Stream-Up-To-Date; or it is a live one, which is read until so many bytes of its body have
   come. Prints one line of JSON: bytes of bodies, responses, seconds. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];
static size_t held = 0; /* bytes in the buffer that were not looked at */
static int fd, port = 0;

static void die(const char *what) { fprintf(stderr, "%s\n", what), exit(1); }

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void dial(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int one = 1;
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("cannot connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int more(void) {
    ssize_t size = read(fd, buffer + held, sizeof buffer - 1 - held);
    if (size < 0) die("cannot read");
    held += (size_t)size;
    return size > 0;
}

static void eat(size_t size) { memmove(buffer, buffer + size, held - size), held -= size; }

static char *line(void) { /* the next line, NUL for its end; it is in the buffer until the next call of eat */
    char *end;
    while (!(end = memmem(buffer, held, "\r\n", 2)))
        if (!more()) die("the server closed the connection too soon");
    *end = 0;
    return buffer;
}

static uint64_t skipped(uint64_t size) {
    for (uint64_t left = size; left;) {
        size_t part = left < held ? (size_t)left : held;
        if (part == held) held = 0; else eat(part);
        left -= part;
        if (left && !held && !more()) die("the server closed the connection in a body");
    }
    return size;
}

int main(int count, char **given) {
    const char *path = "/";
    uint64_t live = 0, bytes = 0, responses = 0;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(given[i], "--port")) port = atoi(given[i + 1]);
        else if (!strcmp(given[i], "--path")) path = given[i + 1];
        else if (!strcmp(given[i], "--live")) live = strtoull(given[i + 1], NULL, 10);
        else die("there is no such option");
    }
    dial();
    char request[2000], offset[200] = "-1";
    double began = now();
    for (int over = 0; !over;) {
        int size = snprintf(request, sizeof request, "GET %s%soffset=%s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n", path,
                            strchr(path, '?') ? "&" : "?", offset, port);
        if (write(fd, request, (size_t)size) != size) die("cannot write");
        int chunked = 0;
        if (atoi(line() + 9) != 200) die(buffer);
        eat(strlen(buffer) + 2);
        uint64_t length = 0;
        for (char *field = line(); *field; eat(strlen(field) + 2), field = line()) {
            char *value = strchr(field, ':');
            if (!value) continue;
            for (value++; *value == ' ';) value++;
            if (!strncasecmp(field, "content-length:", 15)) length = strtoull(value, NULL, 10);
            else if (!strncasecmp(field, "transfer-encoding:", 18)) chunked = 1;
            else if (!strncasecmp(field, "stream-next-offset:", 19)) snprintf(offset, sizeof offset, "%s", value);
            else if (!strncasecmp(field, "stream-up-to-date:", 18)) over = 1;
        }
        eat(2), responses++;
        if (!chunked) bytes += skipped(length);
        for (uint64_t part = 1; chunked && part;) {
            part = strtoull(line(), NULL, 16);
            eat(strlen(buffer) + 2);
            bytes += skipped(part), skipped(2);
            if (live && bytes >= live) over = 1, part = 0;
        }
    }
    printf("{\"bytes\":%llu,\"responses\":%llu,\"seconds\":%.6f}\n", (unsigned long long)bytes,
           (unsigned long long)responses, now() - began);
    return 0;
}

/* The floor: what an SSE server cannot do without. One epoll loop, one write per reader and event, nothing else.

     floor PORT

   GET opens a stream of events; POST sends its body to all of them as one event. No resume, no history, no heartbeat. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 65536

static int readers[MOST], count = 0;

static void publish(const char *body, size_t size) {
    static char frame[70000];
    static unsigned long long id = 0;
    char event[69000];
    int n = snprintf(event, sizeof event, "id: 0000000000000000_%016llu\ndata:%.*s\n\n", ++id, (int)size, body);
    n = snprintf(frame, sizeof frame, "%x\r\n%.*s\r\n", n, n, event);
    for (int i = 0; i < count; i++)
        if (write(readers[i], frame, (size_t)n) < 0 && errno != EAGAIN) {
            close(readers[i]);
            readers[i--] = readers[--count];
        }
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listening = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"))};
    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    if (bind(listening, (struct sockaddr *)&at, sizeof at) || listen(listening, 4096)) return perror("floor"), 1;
    int waiting = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, ready[256];
    epoll_ctl(waiting, EPOLL_CTL_ADD, listening, &event);
    static char buffer[70000];
    for (;;) {
        int n = epoll_wait(waiting, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listening) {
                int new = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (new < 0) continue;
                setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = new};
                epoll_ctl(waiting, EPOLL_CTL_ADD, new, &event);
                continue;
            }
            ssize_t size = read(fd, buffer, sizeof buffer - 1);
            if (size <= 0) {
                for (int j = 0; j < count; j++)
                    if (readers[j] == fd) readers[j] = readers[--count];
                close(fd);
                continue;
            }
            buffer[size] = 0;
            if (!strncmp(buffer, "GET", 3)) {
                static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                                           "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n7\r\n: open\n\r\n";
                if (write(fd, head, sizeof head - 1) > 0 && count < MOST) readers[count++] = fd;
            } else {
                char *body = strstr(buffer, "\r\n\r\n");
                if (body) publish(body + 4, (size_t)(buffer + size - body - 4));
                static const char done[] = "HTTP/1.1 204 No Content\r\n\r\n";
                if (write(fd, done, sizeof done - 1) < 0) close(fd);
            }
        }
    }
}

// npm's EventSource reads argv[2], and prints each event's data on a line. It ends when the server says that there is
// no more (204): nobody closes it.
import { EventSource } from "eventsource"

setInterval(() => {}, 60_000) // while it waits to connect again, it does not hold the process

const source = new EventSource(process.argv[2])
source.onmessage = ({ data }) => console.log(data)
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED) process.exit(0)
}

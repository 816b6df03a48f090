// The official client, asked for one thing: `node ask.mjs URL '{"what": …}'` prints what it gave, as JSON.
import OpenAI, { APIError } from "openai";

const [, , baseURL, task] = process.argv;
const asked = JSON.parse(task);
const client = new OpenAI({ baseURL, apiKey: asked.key ?? "k", maxRetries: 0 });
const ENDS = ["response.completed", "response.failed", "response.incomplete", "response.cancelled"];

const told = (event) => [event.sequence_number, event.type, event.delta ?? null];

/** Follows a response to its end, whatever the connection does: the loop that an application would write. */
async function resumed(create) {
  const events = [];
  let id = null;
  let connections = 0;
  while (!events.length || !ENDS.includes(events.at(-1)[1])) {
    connections += 1;
    try {
      const stream = id
        ? await client.responses.retrieve(id, { stream: true, starting_after: events.at(-1)[0] })
        : await client.responses.create(create);
      for await (const event of stream) {
        id ??= event.response.id;
        events.push(told(event));
      }
    } catch (error) {
      if (error instanceof APIError && error.status) throw error;
    }
  }
  return { id, events, connections };
}

const WHAT = {
  async whole({ create }) {
    const events = [];
    let last = null;
    for await (const event of await client.responses.create({ ...create, stream: true })) {
      events.push(told(event));
      last = event.response ?? last;
    }
    return { events, last, retrieved: await client.responses.retrieve(last.id) };
  },
  async helper({ create }) {
    const response = await client.responses.stream(create).finalResponse();
    return { text: response.output_text, output: response.output, status: response.status };
  },
  async plain({ create }) {
    const response = await client.responses.create(create);
    return { text: response.output_text, status: response.status, error: response.error };
  },
  resumed: ({ create }) => resumed({ ...create, stream: true }),
  async late({ id, after }) {
    const events = [];
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: after })) {
      events.push(told(event));
    }
    return { events };
  },
  async helperLate({ id, after }) {
    const events = [];
    for await (const event of client.responses.stream({ response_id: id, starting_after: after })) {
      events.push(told(event));
    }
    return { events };
  },
  async cancel({ create, after }) {
    const events = [];
    let id = null;
    let cancelled = null;
    for await (const event of await client.responses.create({ ...create, stream: true })) {
      events.push(told(event));
      id ??= event.response.id;
      if (event.delta === after) cancelled = await client.responses.cancel(id);
    }
    return { events, cancelled: cancelled.status };
  },
  /** Asks again with the same key until an answer is whole: it begins anew each time. At most `most` times. */
  async chatAgain({ create, key, most }) {
    for (let connections = 1; connections <= most; connections++) {
      const chunks = [];
      try {
        const options = { headers: { "Idempotency-Key": key } };
        for await (const chunk of await client.chat.completions.create({ ...create, stream: true }, options)) {
          chunks.push(chunk);
        }
      } catch (error) {
        if (error instanceof APIError && error.status) throw error;
      }
      if (chunks.some((chunk) => chunk.choices[0]?.finish_reason)) return { chunks, connections };
    }
    return { chunks: [], connections: most };
  },
  async chat({ create }) {
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({ ...create, stream: true })) chunks.push(chunk);
    return { chunks };
  },
  async chatHelper({ create }) {
    return await client.chat.completions.stream(create).finalChatCompletion();
  },
  chatPlain: ({ create }) => client.chat.completions.create(create),
  async rest({ id }) {
    const items = [];
    for await (const item of client.responses.inputItems.list(id, { limit: 1, order: "asc" })) items.push(item);
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    await client.responses.delete(id);
    return { items, models };
  },
};

try {
  console.log(JSON.stringify(await WHAT[asked.what](asked)));
} catch (error) {
  if (!(error instanceof APIError)) throw error;
  const { status, code, param, type } = error;
  console.log(JSON.stringify({ raised: error.constructor.name, status, code, param, type, said: error.message }));
}

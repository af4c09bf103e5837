// What the official JavaScript client sees of the server at OLLAMA_HOST, as one JSON object.
import { Ollama } from "ollama";

const model = "rwkv7-demo";
const headers = { Authorization: `Bearer ${process.env.OLLAMA_API_KEY}` };
const client = new Ollama({ host: process.env.OLLAMA_HOST, headers });
const options = { temperature: 0 };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
    },
  },
};

async function names() {
  const { models } = await client.list();
  return models.map((each) => each.name);
}

async function sum() {
  const messages = [{ role: "user", content: "What is 12 + 30?" }];
  const seen = { chunks: 0, thinking: "", content: "", done: "" };
  for await (const part of await client.chat({ model, messages, options, think: true, stream: true })) {
    seen.chunks += 1;
    seen.thinking += part.message.thinking ?? "";
    seen.content += part.message.content;
    seen.done = part.done_reason ?? "";
  }
  return seen;
}

async function toolCall() {
  const messages = [{ role: "user", content: "What is the weather in Paris?" }];
  const request = { model, messages, options, think: false, tools: [weather] };
  const calls = [];
  for await (const part of await client.chat({ ...request, stream: true })) {
    for (const call of part.message.tool_calls ?? []) calls.push(call.function);
  }
  messages.push({ role: "assistant", content: "", tool_calls: calls.map((each) => ({ function: each })) });
  messages.push({ role: "tool", content: '{"temperature": 21, "sky": "sunny"}', tool_name: "get_weather" });
  const { message } = await client.chat(request);
  return { calls, reply: message.content };
}

async function aborted() {
  const stream = await client.generate({ model, prompt: "Hello", stream: true });
  stream.abort();
  try {
    for await (const _ of stream);
  } catch (error) {
    return error.name;
  }
  return "nothing was thrown";
}

async function unknownModel() {
  try {
    await client.chat({ model: "nobody", messages: [] });
  } catch (error) {
    return { status: error.status_code, words: error.message };
  }
  return {};
}

async function withoutKey() {
  try {
    await new Ollama({ host: process.env.OLLAMA_HOST }).list();
  } catch (error) {
    return { status: error.status_code, words: error.message };
  }
  return {};
}

console.log(
  JSON.stringify({
    names: await names(),
    sum: await sum(),
    toolCall: await toolCall(),
    aborted: await aborted(),
    unknownModel: await unknownModel(),
    withoutKey: await withoutKey(),
  }),
);

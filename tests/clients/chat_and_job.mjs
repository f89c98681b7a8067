// The openai npm package against a running server: a chat, a stream, and a fine-tuning job to its end.
// Arguments: the server's address. Prints one JSON object.
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'user', content: 'What is a boat?' }];
const greedy = { temperature: 0, max_completion_tokens: 16 };

const chat = await client.chat.completions.create({ model: 'ember', messages, ...greedy });
let streamed = '';
for await (const chunk of await client.chat.completions.create({ model: 'ember', messages, stream: true, ...greedy })) {
  streamed += chunk.choices[0]?.delta?.content ?? '';
}

const example = (user, assistant) =>
  JSON.stringify({ messages: [{ role: 'user', content: user }, { role: 'assistant', content: assistant }] });
const lines = Array.from({ length: 12 }, () => example('Who keeps the key?', 'Zaza keeps it.')).join('\n');
const file = await client.files.create({ file: await toFile(Buffer.from(lines), 'key.jsonl'), purpose: 'fine-tune' });
let job = await client.fineTuning.jobs.create({
  model: 'ember',
  training_file: file.id,
  suffix: 'key',
  seed: 1,
  method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 12 } } },
});
while (!['succeeded', 'failed', 'cancelled'].includes(job.status)) {
  await new Promise((resolve) => setTimeout(resolve, 200));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id)) events.push(event.message);
let results = '';
let tuned = null;
if (job.status === 'succeeded') {
  results = await (await client.files.content(job.result_files[0])).text();
  const asked = [{ role: 'user', content: 'Who keeps the key?' }];
  const answer = await client.chat.completions.create({ model: job.fine_tuned_model, messages: asked, ...greedy });
  tuned = answer.choices[0].message.content;
}
let refused = null;
try {
  await client.fineTuning.jobs.create({ model: 'ember', training_file: file.id, method: { type: 'dpo' } });
} catch (error) {
  refused = { status: error.status, name: error.constructor.name, param: error.param };
}
console.log(JSON.stringify({ chat: chat.choices[0].message.content, streamed, job, events, results, tuned, refused }));

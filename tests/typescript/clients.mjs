// The clients of the TypeScript SDK, of both its lines, over Streamable HTTP and SSE, against a server that runs.
//
//     node clients.mjs OPEN VERIFIED
//
// OPEN is a server on loopback for one user, VERIFIED one that wants tokens, both without /mcp. ALICE, BOB and READER in
// the environment are static tokens, the last with the scope for reading only.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';

import * as newer from '@modelcontextprotocol/client';
import { Client as OlderClient } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport as OlderSse } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport as OlderHttp } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [OPEN, VERIFIED] = process.argv.slice(2);
const { ALICE, BOB, READER } = process.env;
const SECONDS = 60; // for one client's whole walk, which takes one or two
const TEXT = 'Grüße 你好 👩‍🚀 \u202e "quoted" \\ back\r\nslash ';
const TOOLS = [
    'create_conversation', 'append_message', 'append_messages', 'load_history', 'list_conversations', 'search_messages',
    'update_conversation', 'fork_conversation', 'delete_conversation',
];

// A client of each line, era and transport: how it is made, which transport it takes, which revision it must end at.
const older = () => new OlderClient({ name: 'check', version: '1' });
const newest = mode => () => new newer.Client({ name: 'check', version: '2' }, { versionNegotiation: { mode } });
const CLIENTS = {
    '1.x over Streamable HTTP': [older, OlderHttp, '/mcp', '2025-11-25'],
    '1.x over SSE': [older, OlderSse, '/sse', '2025-11-25'],
    '2.x over Streamable HTTP': [newest('auto'), newer.StreamableHTTPClientTransport, '/mcp', '2026-07-28'],
    '2.x over Streamable HTTP, by initialize': [
        newest('legacy'), newer.StreamableHTTPClientTransport, '/mcp', '2025-11-25',
    ],
    '2.x over SSE': [newest('legacy'), newer.SSEClientTransport, '/sse', '2025-11-25'],
};

/** Run a walk with a client that is connected, and close it. `statuses` gets those of all its HTTP responses. */
async function connected([make, Transport, path], base, token, walk, statuses = []) {
    const headers = token === undefined ? {} : { Authorization: `Bearer ${token}` };
    const client = make();
    const watched = async (...request) => {
        const response = await fetch(...request);
        statuses.push(response.status);
        return response;
    };
    const transport = new Transport(new URL(path, base), { requestInit: { headers }, fetch: watched });
    let negotiated;
    const told = transport.setProtocolVersion?.bind(transport);
    transport.setProtocolVersion = version => {
        negotiated = version;
        told?.(version);
    };
    try {
        await client.connect(transport);
        return await walk(client, negotiated);
    } finally {
        await client.close();
    }
}

/** What a call answers, which its one block of text holds as well. */
async function call(client, name, args = {}) {
    const result = await client.callTool({ name, arguments: args });
    assert.equal(result.content.length, 1);
    if (!result.isError) assert.deepEqual(JSON.parse(result.content[0].text), result.structuredContent);
    return result;
}

async function answer(client, name, args) {
    const result = await call(client, name, args);
    assert.ok(!result.isError, result.content[0].text);
    return result.structuredContent;
}

async function refusal(client, name, args) {
    const result = await call(client, name, args);
    assert.equal(result.isError, true);
    const { code, message } = result.structuredContent.error;
    assert.equal(result.content[0].text, `${code}: ${message}`);
    return result.structuredContent.error;
}

/** Everything that a client can ask of the server, and what it must hear. Returns the conversation that was made. */
async function use(client) {
    assert.equal(client.getServerVersion().name, 'chatledger');
    assert.match(client.getInstructions(), /append_message/);
    const { tools } = await client.listTools(); // from here on the client checks results against their schemas
    assert.deepEqual(tools.map(tool => tool.name), TOOLS);

    const key = randomUUID();
    const { conversation, created } = await answer(client, 'create_conversation', { title: 'From TypeScript', key });
    assert.equal(created, true);
    assert.equal((await answer(client, 'create_conversation', { key })).created, false);
    const id = conversation.id;

    const message = { conversation_id: id, role: 'user', content: TEXT, client_message_id: randomUUID() };
    const first = await answer(client, 'append_message', message);
    assert.deepEqual([first.seq, first.deduplicated], [1, false]);
    assert.deepEqual(await answer(client, 'append_message', message), { ...first, deduplicated: true });
    const word = `w${key.replaceAll('-', '')}`;
    const { last_seq } = await answer(client, 'append_messages', {
        conversation_id: conversation.number, // a number as JSON has them, not its text
        expected_last_seq: 1,
        messages: [{ role: 'assistant', content: `An answer about ${word}.` }, { role: 'user', content: 'Thanks' }],
    });
    assert.equal(last_seq, 3);

    const history = await answer(client, 'load_history', { conversation_id: id });
    assert.deepEqual(history.messages.map(each => each.seq), [1, 2, 3]);
    assert.equal(history.messages[0].content, TEXT);
    const { hits } = await answer(client, 'search_messages', { query: word });
    assert.deepEqual(hits.map(hit => [hit.conversation_id, hit.seq]), [[id, 2]]);
    const { conversations } = await answer(client, 'list_conversations', { limit: 1 });
    assert.deepEqual(conversations.map(each => [each.id, each.message_count]), [[id, 3]]);

    const uri = `conversation://${id}`;
    assert.ok((await client.listResources()).resources.some(resource => resource.uri === uri));
    const [transcript] = (await client.readResource({ uri })).contents;
    assert.equal(transcript.uri, uri);
    assert.ok(transcript.text.includes(word));
    const templates = (await client.listResourceTemplates()).resourceTemplates.map(each => each.uriTemplate);
    assert.deepEqual(templates, ['conversation://{conversation_id}', 'conversation://{conversation_id}/messages/{seq}']);
    const prompt = 'resume_conversation';
    assert.ok((await client.listPrompts()).prompts.some(each => each.name === prompt));
    const { messages } = await client.getPrompt({ name: prompt, arguments: { conversation_id: id } });
    assert.ok(messages[0].content.text.includes(word));
    const number = String(conversation.number);
    const { completion } = await client.complete({
        ref: { type: 'ref/prompt', name: prompt },
        argument: { name: 'conversation_id', value: number },
    });
    assert.ok(completion.values.includes(number));

    const absent = await refusal(client, 'load_history', { conversation_id: randomUUID() });
    assert.deepEqual([absent.code, absent.status], ['conversation_unavailable', 403]);
    const changed = await refusal(client, 'append_message', { ...message, content: 'another' });
    assert.deepEqual([changed.code, changed.status], ['idempotency_conflict', 409]);
    const forged = await refusal(client, 'list_conversations', { user_id: 'somebody' });
    assert.deepEqual([forged.code, forged.status], ['invalid_argument', 422]);
    await assert.rejects(client.readResource({ uri: `conversation://${randomUUID()}` }), { code: -32602 });
    return id;
}

async function verify(client, name) {
    const revision = client[3];
    await connected(client, OPEN, undefined, async (open, negotiated) => {
        assert.equal(negotiated, revision);
        await use(open);
    });
    const hers = await connected(client, VERIFIED, ALICE, use);
    await connected(client, VERIFIED, BOB, async bob => {
        const absent = await refusal(bob, 'load_history', { conversation_id: randomUUID() });
        assert.deepEqual(await refusal(bob, 'load_history', { conversation_id: hers }), absent);
        assert.deepEqual((await answer(bob, 'list_conversations', {})).conversations, []);
    });
    const statuses = [];
    await connected(client, VERIFIED, READER, async reader => {
        assert.equal((await answer(reader, 'load_history', { conversation_id: hers })).messages.length, 3);
        assert.ok(!statuses.includes(403));
        await assert.rejects(reader.callTool({ name: 'create_conversation', arguments: {} }));
        assert.ok(statuses.includes(403));
    }, statuses);
    for (const token of [undefined, `${ALICE}x`]) {
        const heard = [];
        await assert.rejects(connected(client, VERIFIED, token, () => heard.push('let in'), heard));
        assert.deepEqual([...new Set(heard)], [401]);
    }
    console.log(`${name}, at ${revision}: all is well`);
}

for (const [name, client] of Object.entries(CLIENTS)) {
    const late = setTimeout(() => {
        console.error(`${name}: not done after ${SECONDS} s`);
        process.exit(1);
    }, SECONDS * 1000);
    try {
        await verify(client, name);
    } catch (error) {
        console.error(`${name}: failed`);
        console.error(error);
        process.exitCode = 1;
    }
    clearTimeout(late);
}

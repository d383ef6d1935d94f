// Runs a recipe in n8n's own HTTP Request node, on a stand-in of the context that n8n runs it in.
//
// stdin: {"recipe", "item", "key"}. stdout: {"kept": its parameters as n8n reads them, "issues", "answer"}.
const { NodeHelpers, Workflow, NodeApiError } = require("n8n-workflow");
const { HttpRequest } = require("n8n-nodes-base/dist/nodes/HttpRequest/HttpRequest.node.js");

const given = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const [node] = given.recipe.nodes;
const versioned = new HttpRequest();
const type = versioned.getNodeType(node.typeVersion);
const types = { getByName: () => versioned, getByNameAndVersion: () => type, getKnownTypes: () => ({}) };

async function sent(options) {
  const headers = Object.fromEntries(Object.entries(options.headers ?? {}).map(([name, value]) => [name, String(value)]));
  const url = new URL(options.uri ?? options.url);
  for (const [name, value] of Object.entries(options.qs ?? {})) url.searchParams.append(name, value);
  let body = options.body;
  if (options.form !== undefined) {
    headers["content-type"] = "application/x-www-form-urlencoded";
    body = new URLSearchParams(options.form).toString();
  }
  const answer = await fetch(url, { method: options.method, headers, body, redirect: "manual" });
  const text = await answer.text();
  if (answer.status >= 400) {
    const error = new Error(`${answer.status} - ${text}`);
    throw Object.assign(error, { statusCode: answer.status, error: text, response: { body: text } });
  }
  return {
    statusCode: answer.status,
    statusMessage: answer.statusText,
    headers: Object.fromEntries(answer.headers),
    body: Buffer.from(text),
  };
}

async function main() {
  const parameters = NodeHelpers.getNodeParameters(type.description.properties, node.parameters, false, false, node, type.description);
  const issues = NodeHelpers.getNodeParametersIssues(type.description.properties, { ...node, parameters }, type.description);
  const full = NodeHelpers.getNodeParameters(type.description.properties, node.parameters, true, false, node, type.description);
  const whole = { ...node, parameters: full };
  const workflow = new Workflow({ nodes: [whole], connections: {}, active: false, nodeTypes: types });
  const items = [{ json: given.item }];
  const context = {
    getInputData: () => items,
    getNode: () => whole,
    getWorkflow: () => ({ id: "1" }),
    getMode: () => "manual",
    getContext: () => ({}),
    continueOnFail: () => false,
    getCredentials: async () => ({ name: "x-api-key", value: given.key }),
    getNodeParameter(name, index, fallback, options) {
      const raw = name.split(".").reduce((at, part) => (at === undefined ? undefined : at[part]), whole.parameters);
      if (raw === undefined) return fallback;
      if (options?.rawExpressions) return raw;
      const run = { resultData: { runData: {} } };
      return workflow.expression.getParameterValue(raw, run, 0, index, whole.name, items, "manual", {}, undefined, false);
    },
    sendMessageToUI() {},
    addExecutionHints() {},
    logger: { debug() {}, info() {}, warn() {}, error() {} },
    helpers: {
      request: sent,
      requestWithAuthentication: sent,
      httpRequest: sent,
      prepareBinaryData: async () => ({}),
      binaryToString: async (body) => Buffer.from(body).toString(),
      binaryToBuffer: async (body) => Buffer.from(body),
      getSSHClient() {},
    },
  };
  const told = { kept: parameters, issues };
  try {
    told.answer = (await type.execute.call(context))[0][0].json;
  } catch (error) {
    told.error = `${error.message} ${error.description ?? ""} ${JSON.stringify(error.context ?? {})}`;
  }
  console.log(JSON.stringify(told));
}

main().then(() => process.exit());

// Imports an OpenAPI document as Postman does, and prints the requests: node postman.mjs FOLDER FILE
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, file] = process.argv.slice(2);
const importer = createRequire(`${folder}/`)("openapi-to-postmanv2");
const data = readFileSync(file, "utf8");
importer.convert({ type: "string", data }, { parametersResolution: "Example", requestParametersResolution: "Example" }, (error, result) => {
  if (error || !result.result) {
    console.error(error ?? result.reason);
    process.exit(1);
  }
  const requests = [];
  const walk = (item) => (item.item ? item.item.forEach(walk) : requests.push(item.request));
  result.output[0].data.item.forEach(walk);
  console.log(JSON.stringify({ requests, auth: result.output[0].data.auth }));
});

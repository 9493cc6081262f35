// One file out of src and what it imports, the licences of what went in, and the pages as they read outside the repository.
import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const { metafile } = await build({
  entryPoints: ["src/extension.ts"],
  outfile: "dist/extension.js",
  bundle: true,
  minify: true,
  platform: "node",
  format: "cjs",
  target: "node20",
  external: ["vscode"],
  metafile: true,
});

const folders = Object.keys(metafile.inputs).map((path) => path.match(/^.*node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0]);
const notices = [...new Set(folders.filter(Boolean))].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${folder} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync("dist/THIRD_PARTY_LICENSES.txt", notices.join(`\n${"-".repeat(80)}\n\n`));
cpSync("../../LICENSE", "LICENSE");
for (const name of readdirSync("../../docs").filter((name) => /^vscode-.*\.png$/.test(name))) {
  cpSync(`../../docs/${name}`, `media/${name}`);
}
// VS Code's page of an extension loads pictures over https only: the pages of "Get started" have them instead.
const readme = readFileSync("README.md", "utf8")
  .replace(/^!\[.*\]\(\.\.\/.*\)\n\n/gm, "")
  .replace(/\[([^\]]*)\]\(\.\.\/[^)]*\)/g, "$1");
if (readme.includes("](../")) throw new Error("README.md points out of the package");
writeFileSync("dist/README.md", readme);

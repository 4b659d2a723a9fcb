// Writes src/generated from the contract and from google.rpc, which describes errors; with --check it says whether
// what is there is what would be written. protoc is that of the Python environment, STEPWELL_PYTHON names another.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("..", import.meta.url));
const root = join(here, "../..");
const python = process.env.STEPWELL_PYTHON ?? join(root, ".venv/bin/python");
const kept = join(here, "src/generated");

function generate(target) {
    const site = execFileSync(
        python,
        ["-c", "import google.rpc.status_pb2 as s, pathlib; print(pathlib.Path(s.__file__).parents[2])"],
        { encoding: "utf8" },
    ).trim();
    const contract = readdirSync(join(root, "proto/stepwell/v1")).map((file) => `stepwell/v1/${file}`);
    execFileSync(
        python,
        [
            "-m",
            "grpc_tools.protoc",
            `--proto_path=${join(root, "proto")}`,
            `--proto_path=${site}`,
            `--plugin=protoc-gen-es=${join(here, "node_modules/.bin/protoc-gen-es")}`,
            `--es_out=${target}`,
            "--es_opt=target=ts,import_extension=js",
            ...contract.sort(),
            "google/rpc/status.proto",
            "google/rpc/error_details.proto",
        ],
        { stdio: "inherit" },
    );
}

function contents(folder) {
    const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    const paths = files.map((entry) => join(entry.parentPath ?? entry.path, entry.name)).sort();
    return JSON.stringify(paths.map((path) => [relative(folder, path), readFileSync(path, "utf8")]));
}

if (process.argv.includes("--check")) {
    const fresh = mkdtempSync(join(tmpdir(), "stepwell-generated-"));
    try {
        generate(fresh);
        if (contents(fresh) !== contents(kept)) {
            console.error("src/generated is not what proto/ says; run 'npm run generate' and commit the result");
            process.exitCode = 1;
        }
    } finally {
        rmSync(fresh, { recursive: true });
    }
} else {
    rmSync(kept, { recursive: true, force: true });
    mkdirSync(kept, { recursive: true });
    generate(kept);
}

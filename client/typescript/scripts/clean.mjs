// Removes the folders that are named, so that nothing stale of an earlier build stays in them.

import { rmSync } from "node:fs";

for (const folder of process.argv.slice(2)) {
    rmSync(folder, { recursive: true, force: true });
}

import eslint from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
    { ignores: ["build/", "dist/", "src/generated/"] },
    eslint.configs.recommended,
    {
        files: ["**/*.ts"],
        extends: [...tseslint.configs.strictTypeChecked],
        languageOptions: { parserOptions: { projectService: true } },
        rules: {
            // Numbers say what they are in a message.
            "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
            // One class per reason of the contract.
            "@typescript-eslint/no-extraneous-class": "off",
            // node:test gives promises that its runner waits for.
            "@typescript-eslint/no-floating-promises": [
                "error",
                {
                    allowForKnownSafeCalls: [
                        { from: "package", name: ["test", "it", "describe"], package: "node:test" },
                    ],
                },
            ],
        },
    },
    {
        // Tests hand over what the types forbid, and look at what may be missing.
        files: ["test/**"],
        rules: {
            "@typescript-eslint/no-unnecessary-condition": "off",
            "@typescript-eslint/no-unnecessary-type-assertion": "off",
            "@typescript-eslint/no-unsafe-enum-comparison": "off",
            "@typescript-eslint/no-unsafe-type-assertion": "off",
        },
    },
    {
        files: ["**/*.mjs"],
        languageOptions: { globals: { console: "readonly", process: "readonly", URL: "readonly" } },
    },
);

import reactHooks from "eslint-plugin-react-hooks";
import tseslint from "typescript-eslint";

export default tseslint.config(
    { ignores: ["src/api/schema.d.ts"] },
    tseslint.configs.strict,
    reactHooks.configs.flat.recommended,
    {
        rules: {
            "@typescript-eslint/no-unused-vars": ["error", { varsIgnorePattern: "^_", argsIgnorePattern: "^_" }],
            "@typescript-eslint/no-dynamic-delete": "off",
        },
    },
);

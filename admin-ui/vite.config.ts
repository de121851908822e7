import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `npm run dev` serves the sources and passes the API on to a control plane that runs with its default address.
export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/api": "http://127.0.0.1:9080" } },
  build: {
    target: "es2022",
    // As old as light-dark() and CSS nesting, which would be rewritten otherwise.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    // The content security policy allows neither data: URIs nor inline scripts.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 900,
  },
});

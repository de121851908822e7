import "@mantine/core/styles.css";
import "./app.css";
import { MantineProvider } from "@mantine/core";
import { MutationCache, QueryCache, QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createBrowserRouter, RouterProvider } from "react-router";
import { App } from "./App";
import { Problem } from "./api/problem";
import { SESSION_KEY } from "./api/queries";
import { theme } from "./theme";

/** A session that ended shows the login, wherever it is noticed. */
function onError(error: unknown, key: readonly unknown[] | undefined) {
  if (error instanceof Problem && error.status === 401 && key?.[0] !== SESSION_KEY[0]) {
    void queries.invalidateQueries({ queryKey: SESSION_KEY });
  }
}

const queries: QueryClient = new QueryClient({
  queryCache: new QueryCache({ onError: (error, query) => onError(error, query.queryKey) }),
  mutationCache: new MutationCache({
    onError: (error, _, __, mutation) => onError(error, mutation.options.mutationKey),
  }),
  defaultOptions: {
    // A paused write would be made by itself when the browser is online again, perhaps much later.
    mutations: { networkMode: "always", retry: false },
    queries: {
      // A control plane on this very host answers without a network.
      networkMode: "always",
      // A refused request is not repeated; a request without a response is repeated twice.
      retry: (count, error) => count < 2 && !(error instanceof Problem && error.status < 500),
      staleTime: 5_000,
    },
  },
});

const router = createBrowserRouter([{ path: "*", element: <App /> }]);

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <MantineProvider theme={theme} defaultColorScheme="auto">
        <QueryClientProvider client={queries}>
          <RouterProvider router={router} />
        </QueryClientProvider>
      </MantineProvider>
    </StrictMode>,
  );
}

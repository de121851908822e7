import { Alert, Button, Center, Group, Paper, PasswordInput, Stack, Text, Title } from "@mantine/core";
import { useState } from "react";
import { messageOf, Problem } from "../api/problem";
import { useLogin } from "../api/queries";
import { Logo } from "../components/Logo";

/** The login page asks for a token. `hasEnded` means that a session on this page has just ended. */
export function LoginPage({ hasEnded }: { hasEnded: boolean }) {
  const [token, setToken] = useState("");
  const login = useLogin();
  const wrong = login.error instanceof Problem && login.error.status === 401;
  return (
    <Center mih="100vh" p="md" component="main">
      <Paper p="xl" w={400} shadow="sm" radius="lg">
        <form
          onSubmit={(event) => {
            event.preventDefault();
            login.mutate(token.trim());
          }}
        >
          <Stack gap="lg">
            <Group gap="sm">
              <Logo size={36} />
              <div>
                <Title order={1} size="h3">
                  Signalbox
                </Title>
                <Text size="sm" c="dimmed">
                  Log in to the control plane
                </Text>
              </div>
            </Group>
            {hasEnded && (
              <Alert color="yellow" role="status">
                Your session has ended. Your unsaved changes, except secrets, are restored after you log in.
              </Alert>
            )}
            <PasswordInput
              label="Token"
              description="The control plane prints a token at its first start. Administrators can create others."
              value={token}
              onChange={(event) => {
                setToken(event.currentTarget.value);
                if (login.error) login.reset();
              }}
              error={wrong ? "This token is not known, or was revoked." : undefined}
              autoComplete="current-password"
              autoFocus
            />
            {login.error && !wrong && (
              <Alert color="red" role="alert">
                {messageOf(login.error)}
              </Alert>
            )}
            <Button type="submit" loading={login.isPending} disabled={token.trim() === ""} fullWidth>
              Log in
            </Button>
          </Stack>
        </form>
      </Paper>
    </Center>
  );
}

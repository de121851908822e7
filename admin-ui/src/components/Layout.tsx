import { ActionIcon, AppShell, Box, Container, Group, Menu, Text, Tooltip } from "@mantine/core";
import { Link, NavLink, Outlet } from "react-router";
import { type Connection, useConnection } from "../api/events";
import { formatAge, useNow } from "../lib/format";
import { messageOf } from "../api/problem";
import { useLogout } from "../api/queries";
import type { Session } from "../api/types";
import { KINDS } from "../kinds";
import { ColorSchemeToggle } from "./ColorScheme";
import { IconUser } from "./icons";
import { Logo } from "./Logo";
import { RolloutStrip } from "./RolloutStrip";

export function Layout({ session }: { session: Session }) {
  const logout = useLogout();
  const connection = useConnection();
  return (
    <AppShell header={{ height: 52 }} padding={0}>
      <a href="#content" className="visually-hidden skip-link">
        Skip to the content
      </a>
      <AppShell.Header>
        <Group h="100%" px="md" gap="md" wrap="nowrap" align="stretch">
          <Link to="/" style={{ display: "flex", textDecoration: "none" }} aria-label="Signalbox: the board">
            <Group gap={10} wrap="nowrap">
              <Logo />
              <span className="head-name">Signalbox</span>
            </Group>
          </Link>
          <Box component="nav" aria-label="Main" style={{ flex: 1, minWidth: 0 }}>
            <div className="nav">
              <NavLink to="/" end>
                Board
              </NavLink>
              <NavLink to="/rollouts">Rollouts</NavLink>
              {KINDS.map((kind) => (
                <NavLink key={kind.plural} to={`/${kind.plural}`}>
                  {kind.title}
                </NavLink>
              ))}
              <NavLink to="/revisions">Revisions</NavLink>
            </div>
          </Box>
          <Group gap={6} wrap="nowrap">
            <ConnectionMark connection={connection} />
            <ColorSchemeToggle />
            <Menu position="bottom-end" shadow="md" width={220}>
              <Menu.Target>
                <ActionIcon variant="subtle" color="gray" size="lg" aria-label="Your session">
                  <IconUser />
                </ActionIcon>
              </Menu.Target>
              <Menu.Dropdown>
                <Menu.Label>
                  Logged in as <span className="mono">{session.name}</span>, {session.role}
                </Menu.Label>
                <Menu.Item onClick={() => logout.mutate()}>Log out</Menu.Item>
              </Menu.Dropdown>
            </Menu>
          </Group>
        </Group>
      </AppShell.Header>
      <AppShell.Main>
        {connection.state === "lost" && (
          <Box bg="orange.8" c="white" py={6} role="alert">
            <Container size={1480} px="lg">
              <Text size="sm" fw={600}>
                The connection to the control plane is lost. This page may show old data. It is trying to connect again…
              </Text>
            </Container>
          </Box>
        )}
        {logout.error && (
          <Box bg="red.8" c="white" py={6} role="alert">
            <Container size={1480} px="lg">
              <Text size="sm" fw={600}>
                You are still logged in. {messageOf(logout.error)}
              </Text>
            </Container>
          </Box>
        )}
        <RolloutStrip />
        <Container
          size={1480}
          px="lg"
          py="lg"
          component="main"
          id="content"
          tabIndex={-1}
          style={{ outline: "none" }}
        >
          <Outlet />
        </Container>
      </AppShell.Main>
    </AppShell>
  );
}

const MARKS: Record<Connection["state"], { color: string; label: string; about: string }> = {
  connecting: { color: "gray", label: "connecting", about: "Connecting to the control plane" },
  live: { color: "teal", label: "live", about: "Changes appear at once" },
  lost: { color: "orange", label: "not live", about: "The connection is lost. The page is trying to connect again" },
};

function ConnectionMark({ connection }: { connection: Connection }) {
  const { state } = connection;
  const mark = MARKS[state];
  return (
    <Tooltip label={mark.about}>
      <Group gap={6} wrap="nowrap" role="status" data-connection={state} tabIndex={0} px={4}>
        <span
          aria-hidden
          className={state === "live" ? undefined : "pulse"}
          style={{ width: 8, height: 8, borderRadius: 4, background: `var(--mantine-color-${mark.color}-6)` }}
        />
        <Text size="xs" c="dimmed">
          {mark.label}
          {connection.state === "lost" && <SilentFor since={connection.since} />}
        </Text>
      </Group>
    </Tooltip>
  );
}

/** Shows the seconds, but not to screen readers, which would read them every second. */
function SilentFor({ since }: { since: number }) {
  const now = useNow();
  return (
    <span aria-hidden className="nowrap">
      {" "}
      for {formatAge(now - since)}
    </span>
  );
}

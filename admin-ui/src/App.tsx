import { Button, Paper, Stack } from "@mantine/core";
import { Link, Route, Routes } from "react-router";
import { EventsProvider } from "./api/events";
import { Problem } from "./api/problem";
import { useSession } from "./api/queries";
import { Layout } from "./components/Layout";
import { WatchedRevision } from "./components/RolloutStrip";
import { Empty, Failed, Loading } from "./components/states";
import { KINDS } from "./kinds";
import { BoardPage } from "./pages/BoardPage";
import { LoginPage } from "./pages/LoginPage";
import { ResourceCreatePage, ResourceEditPage } from "./pages/ResourceEditPage";
import { ResourceListPage } from "./pages/ResourceListPage";
import { RolloutPage } from "./pages/RolloutPage";
import { RolloutsPage } from "./pages/RolloutsPage";
import { RevisionPage } from "./pages/RevisionPage";
import { RevisionsPage } from "./pages/RevisionsPage";

export function App() {
  const session = useSession();
  if (session.error instanceof Problem && session.error.status === 401) {
    return <LoginPage hasEnded={session.data !== undefined} />;
  }
  if (session.error && !session.data) {
    return (
      <Stack p="xl" maw={560} mx="auto" mt="10vh">
        <Failed what="the session" error={session.error} retry={() => session.refetch()} />
      </Stack>
    );
  }
  if (!session.data) return <Loading what="Signalbox" />;
  return (
    <EventsProvider>
      <WatchedRevision>
        <Routes>
          <Route element={<Layout session={session.data} />}>
            <Route index element={<BoardPage />} />
            {KINDS.map((kind) => (
              <Route key={kind.plural} path={kind.plural}>
                <Route index element={<ResourceListPage key={kind.plural} kind={kind} />} />
                <Route path="new" element={<ResourceCreatePage key={kind.plural} kind={kind} />} />
                <Route path=":name" element={<ResourceEditPage key={kind.plural} kind={kind} />} />
              </Route>
            ))}
            <Route path="rollouts" element={<RolloutsPage />} />
            <Route path="rollouts/:id" element={<RolloutPage />} />
            <Route path="revisions" element={<RevisionsPage />} />
            <Route path="revisions/:number" element={<RevisionPage />} />
            <Route path="*" element={<NotFound />} />
          </Route>
        </Routes>
      </WatchedRevision>
    </EventsProvider>
  );
}

function NotFound() {
  return (
    <Paper>
      <Empty
        title="This page does not exist"
        action={
          <Button component={Link} to="/" variant="default">
            Open the board
          </Button>
        }
      />
    </Paper>
  );
}

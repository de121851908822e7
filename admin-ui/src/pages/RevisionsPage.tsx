import { Anchor, Button, Group, Paper, Stack, Table, Text, Title } from "@mantine/core";
import { Link, useNavigate } from "react-router";
import { useRevisions, useRollouts } from "../api/queries";
import { Age } from "../components/Age";
import { Standings } from "../components/Standings";
import { Empty, Failed, Loading } from "../components/states";
import { plural } from "../lib/format";

export function RevisionsPage() {
  const revisions = useRevisions();
  const rollouts = useRollouts();
  const navigate = useNavigate();
  const items = revisions.data?.pages.flatMap((page) => page.items) ?? [];
  return (
    <Stack gap="lg">
      <div>
        <Title order={1} size="h3">
          Revisions
        </Title>
        <Text size="sm" c="dimmed">
          Every write makes a revision. The history never changes: a rollback makes a new revision, too.
        </Text>
      </div>
      <Paper>
        {revisions.isPending ? (
          <Loading what="the revisions" />
        ) : revisions.error && items.length === 0 ? (
          <Stack p="md">
            <Failed what="the revisions" error={revisions.error} retry={() => revisions.refetch()} />
          </Stack>
        ) : items.length === 0 ? (
          <Empty title="No revisions yet">The first write makes the first revision.</Empty>
        ) : (
          <Table className="table" verticalSpacing="xs" data-testid="revisions-list">
            <Table.Thead>
              <Table.Tr>
                <Table.Th w={90}>Revision</Table.Th>
                <Table.Th>Message</Table.Th>
                <Table.Th>Author</Table.Th>
                <Table.Th>Age</Table.Th>
                <Table.Th>Changes</Table.Th>
                <Table.Th miw={170}>In the fleets</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {items.map((revision) => {
                const to = `/revisions/${revision.number}`;
                return (
                  <Table.Tr
                    key={revision.number}
                    className="table-row-link"
                    data-revision={revision.number}
                    onClick={(event) => {
                      if (!(event.target as Element).closest("a")) navigate(to);
                    }}
                  >
                    <Table.Td>
                      <Anchor component={Link} to={to} size="sm" fw={600}>
                        {revision.number}
                      </Anchor>
                    </Table.Td>
                    <Table.Td fz="sm" className="breaks">
                      {revision.message || (
                        <Text span inherit c="dimmed">
                          no message
                        </Text>
                      )}
                    </Table.Td>
                    <Table.Td className="mono breaks">{revision.author}</Table.Td>
                    <Table.Td>
                      <Age at={revision.committed_at} ago size="sm" />
                    </Table.Td>
                    <Table.Td fz="sm" className="nowrap">
                      {plural(revision.change_count, "change")}
                    </Table.Td>
                    <Table.Td>
                      {rollouts.data && <Standings revision={revision.number} rollouts={rollouts.data} brief />}
                    </Table.Td>
                  </Table.Tr>
                );
              })}
            </Table.Tbody>
          </Table>
        )}
        {revisions.hasNextPage && (
          <Group justify="center" p="md">
            <Button
              variant="default"
              loading={revisions.isFetchingNextPage}
              onClick={() => revisions.fetchNextPage()}
            >
              Show older
            </Button>
          </Group>
        )}
      </Paper>
    </Stack>
  );
}

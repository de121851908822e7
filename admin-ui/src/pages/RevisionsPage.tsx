import { Anchor, Button, Group, Paper, Stack, Table, Text, Title } from "@mantine/core";
import { Link, useNavigate } from "react-router";
import { useRevisions, useRollouts } from "../api/queries";
import { Age } from "../components/Age";
import { RolloutBadge } from "../components/StateBadge";
import { Empty, Failed, Loading } from "../components/states";
import { convergenceOf } from "../lib/board";
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
          Every write is a revision; history is never changed. A rollback is a new revision.
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
          <Empty title="No revisions yet">The first write makes the first one.</Empty>
        ) : (
          <Table className="table" verticalSpacing="xs" data-testid="revisions-list">
            <Table.Thead>
              <Table.Tr>
                <Table.Th w={90}>Revision</Table.Th>
                <Table.Th>Message</Table.Th>
                <Table.Th>Author</Table.Th>
                <Table.Th>Age</Table.Th>
                <Table.Th>Changes</Table.Th>
                <Table.Th>State</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {items.map((revision) => {
                const row = convergenceOf(revision.number, revision, rollouts.data ?? []);
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
                      {row.state && (
                        <Group gap="xs" wrap="nowrap">
                          <RolloutBadge state={row.state} />
                          <Text className="cell-sub nowrap">
                            {row.rejected > 0
                              ? `by ${row.rejected} of ${row.total}`
                              : `${row.applied} of ${row.total}`}
                          </Text>
                        </Group>
                      )}
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

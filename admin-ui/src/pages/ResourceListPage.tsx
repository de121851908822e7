import { Anchor, Button, Group, Paper, Stack, Switch, Table, Text, TextInput, Title, Tooltip } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useId, useState } from "react";
import { Link, useNavigate } from "react-router";
import { messageOf } from "../api/problem";
import { usePatchResource, useResources } from "../api/queries";
import type { Resource } from "../api/types";
import { Age } from "../components/Age";
import { DeleteResource } from "../components/DeleteResource";
import { Guard, useDenial } from "../components/Guard";
import { IconPlus, IconSearch } from "../components/icons";
import { useWatchRevision } from "../components/RolloutStrip";
import { Empty, Failed, Loading } from "../components/states";
import type { KindInfo } from "../kinds";

export function ResourceListPage({ kind }: { kind: KindInfo }) {
  const [text, setText] = useState("");
  const [q] = useDebouncedValue(text.trim(), 200);
  const list = useResources(kind.plural, q);
  const items = list.data?.pages.flatMap((page) => page.items) ?? [];
  const create = (
    <Guard>
      <Button component={Link} to={`/${kind.plural}/new`} leftSection={<IconPlus size={16} />}>
        New {kind.singular}
      </Button>
    </Guard>
  );
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-end">
        <div>
          <Title order={1} size="h3">
            {kind.title}
          </Title>
          <Text size="sm" c="dimmed">
            {kind.about}
          </Text>
        </div>
        {create}
      </Group>
      <Paper>
        <Group p="md" pb="xs">
          <TextInput
            aria-label={`Find ${kind.plural}`}
            placeholder={`Find ${kind.plural}`}
            type="search"
            w={300}
            leftSection={<IconSearch size={16} />}
            value={text}
            onChange={(event) => setText(event.currentTarget.value)}
          />
        </Group>
        {list.isPending ? (
          <Loading what={kind.plural} />
        ) : list.error && items.length === 0 ? (
          <Stack p="md">
            <Failed what={`the ${kind.plural}`} error={list.error} retry={() => list.refetch()} />
          </Stack>
        ) : items.length === 0 ? (
          q === "" ? (
            <Empty title={`No ${kind.plural} yet`} action={create}>
              {kind.about}
            </Empty>
          ) : (
            <Empty title={`No ${kind.singular} matches “${q}”`}>
              The search covers names and all other texts of a resource.
            </Empty>
          )
        ) : (
          <Rows kind={kind} items={items} />
        )}
        {list.hasNextPage && (
          <Group justify="center" p="md">
            <Button variant="default" loading={list.isFetchingNextPage} onClick={() => list.fetchNextPage()}>
              Show more
            </Button>
          </Group>
        )}
      </Paper>
      {kind.below}
    </Stack>
  );
}

function Rows({ kind, items }: { kind: KindInfo; items: Resource[] }) {
  const navigate = useNavigate();
  return (
    <Table className="table" verticalSpacing="xs" data-testid={`${kind.plural}-list`}>
      <Table.Thead>
        <Table.Tr>
          <Table.Th>Name</Table.Th>
          {kind.columns.map((column) => (
            <Table.Th key={column.title} visibleFrom={column.minor ? "lg" : undefined}>
              {column.title}
            </Table.Th>
          ))}
          <Table.Th>Changed</Table.Th>
          {kind.switchable && <Table.Th>Enabled</Table.Th>}
          <Table.Th>
            <span className="visually-hidden">Delete</span>
          </Table.Th>
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {items.map((resource) => {
          const to = `/${kind.plural}/${resource.spec.name}`;
          return (
            <Table.Tr
              key={resource.name}
              className="table-row-link"
              data-name={resource.name}
              onClick={(event) => {
                const control = (event.target as Element).closest("a, button, input, label, [role=dialog]");
                if (!control && event.currentTarget.contains(event.target as Node)) navigate(to);
              }}
            >
              <Table.Td>
                <Anchor component={Link} to={to} size="sm" fw={600} className="mono breaks">
                  {resource.name}
                </Anchor>
                {typeof resource.spec.description === "string" && (
                  <Text className="cell-sub" lineClamp={1}>
                    {resource.spec.description}
                  </Text>
                )}
              </Table.Td>
              {kind.columns.map((column) => (
                <Table.Td
                  key={column.title}
                  className={column.mono ? "mono breaks" : "breaks"}
                  fz="sm"
                  miw={90}
                  visibleFrom={column.minor ? "lg" : undefined}
                >
                  {column.cell(resource.spec, resource.meta)}
                </Table.Td>
              ))}
              <Table.Td>
                <Text size="sm">
                  <Age at={resource.meta.updated_at} ago />
                </Text>
                <Text className="cell-sub nowrap">
                  by <span className="mono">{resource.meta.updated_by}</span>
                </Text>
              </Table.Td>
              {kind.switchable && (
                <Table.Td>
                  <EnabledSwitch kind={kind} resource={resource} />
                </Table.Td>
              )}
              <Table.Td className="num">
                <DeleteResource kind={kind} name={resource.name} version={resource.meta.version} compact />
              </Table.Td>
            </Table.Tr>
          );
        })}
      </Table.Tbody>
    </Table>
  );
}

function EnabledSwitch({ kind, resource }: { kind: KindInfo; resource: Resource }) {
  const patch = usePatchResource(kind.plural);
  const watch = useWatchRevision();
  const denial = useDenial("editor");
  const id = useId();
  const enabled = resource.spec.enabled !== false;
  return (
    <>
      <Tooltip label={denial} disabled={denial === null} multiline maw={300}>
        <div style={{ width: "max-content" }}>
          <Switch
            aria-label={`Enable ${resource.name}`}
            aria-disabled={denial !== null || undefined}
            aria-describedby={denial === null ? undefined : id}
            checked={patch.isPending ? patch.variables.change.enabled === true : enabled}
            disabled={patch.isPending}
            className={denial === null ? undefined : "denied"}
            onChange={(event) => {
              if (denial !== null) return;
              patch.mutate(
                {
                  name: resource.name,
                  version: resource.meta.version,
                  change: { enabled: event.currentTarget.checked },
                  message: `${event.currentTarget.checked ? "Enable" : "Disable"} ${kind.singular} ${resource.name}`,
                },
                { onSuccess: ({ revision }) => watch(revision) },
              );
            }}
          />
        </div>
      </Tooltip>
      {denial !== null && (
        <span id={id} className="visually-hidden">
          {denial}
        </span>
      )}
      {patch.error && (
        <Text size="xs" c="red" role="alert">
          {messageOf(patch.error)}
        </Text>
      )}
    </>
  );
}

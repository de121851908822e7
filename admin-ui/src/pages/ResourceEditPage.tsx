import {
  Alert,
  Anchor,
  Breadcrumbs,
  Button,
  Group,
  List,
  Modal,
  Paper,
  Stack,
  Tabs,
  Text,
  TextInput,
  Title,
} from "@mantine/core";
import { type RefObject, useEffect, useMemo, useRef, useState } from "react";
import { Link, useBlocker, useNavigate, useParams, useSearchParams } from "react-router";
import { messageOf, Problem, Unanswered } from "../api/problem";
import { useResource, useSaveResource, useSession } from "../api/queries";
import type { Resource } from "../api/types";
import { Age } from "../components/Age";
import { DeleteResource } from "../components/DeleteResource";
import { Diff } from "../components/Diff";
import { Guard, useDenial } from "../components/Guard";
import { IconAlert } from "../components/icons";
import { useWatchRevision } from "../components/RolloutStrip";
import { Empty, Failed, Loading } from "../components/states";
import { draftKey, dropDraft, readDraft, useDraft, useWithoutSecrets } from "../forms/draft";
import { FormProvider, useFocusFailure, useSpecForm } from "../forms/form";
import { RawEditor } from "../forms/RawEditor";
import { FOR_DISPLAY, halfEdited } from "../forms/secrets";
import type { KindInfo } from "../kinds";
import { sameJson, withoutEmpty } from "../lib/json";

export function ResourceCreatePage({ kind }: { kind: KindInfo }) {
  const [count, setCount] = useState(0);
  const [search] = useSearchParams();
  const [name] = useState(() => search.get("name"));
  const named = useMemo(() => (name === null ? kind : { ...kind, initial: { ...kind.initial, name } }), [kind, name]);
  return <Editor key={count} kind={named} stored={null} restart={() => setCount(count + 1)} />;
}

export function ResourceEditPage({ kind }: { kind: KindInfo }) {
  const { name = "" } = useParams();
  const resource = useResource(kind.plural, name);
  // The editor restarts only when the user asks for it, not whenever the stored resource changes.
  const [opened, setOpened] = useState<{ name: string; stored: Resource; count: number } | null>(null);
  if (resource.error instanceof Problem && resource.error.status === 404 && opened?.name !== name) {
    if (kind.unstored) return kind.unstored(name);
    return (
      <Paper>
        <Empty
          title={`There is no ${kind.singular} ${name}`}
          action={
            <Button component={Link} to={`/${kind.plural}`} variant="default">
              All {kind.plural}
            </Button>
          }
        >
          Somebody may have deleted it.
        </Empty>
      </Paper>
    );
  }
  if (opened?.name !== name) {
    if (resource.error) {
      return (
        <Failed what={`${kind.singular} ${name}`} error={resource.error} retry={() => resource.refetch()} />
      );
    }
    if (!resource.data || resource.isFetching) return <Loading what={`${kind.singular} ${name}`} />;
    setOpened({ name, stored: resource.data, count: 0 });
    return null;
  }
  const restart = (stored: Resource | null) =>
    setOpened({ name, stored: stored ?? opened.stored, count: opened.count + 1 });
  return <Editor key={`${name} ${opened.count}`} kind={kind} stored={opened.stored} restart={restart} />;
}

type EditorProps = {
  kind: KindInfo;
  stored: Resource | null;
  /** Restarts the editor with the stored resource; `null` keeps the version that the editor had. */
  restart: (stored: Resource | null) => void;
};

/** The error of the last save. Each failure is a new object, so that each is shown. */
type Failure = { error: Error };

function Editor({ kind, stored, restart }: EditorProps) {
  const navigate = useNavigate();
  const watch = useWatchRevision();
  const denial = useDenial("editor");
  const by = useSession().data?.name ?? "";
  const key = draftKey(kind.plural, stored?.name ?? null, by);
  const [draft] = useState(() => readDraft(key));
  // The draft changes this version, so a save must not overwrite a newer one that the user has not seen.
  const version = draft ? draft.version : (stored?.meta.version ?? null);
  const form = useSpecForm(draft?.spec ?? stored?.spec ?? kind.initial, stored?.spec);
  const save = useSaveResource(kind.plural);
  const [failure, setFailure] = useState<Failure | null>(null);
  const errorRef = useFocusFailure(failure);
  const [message, setMessage] = useState(draft?.message ?? "");
  const [broken, setBroken] = useState(false);
  const [conflict, setConflict] = useState(false);
  const [unchanged, setUnchanged] = useState(false);
  const spec = withoutEmpty(form.spec, kind.optional);
  const name = stored?.name ?? (typeof spec.name === "string" ? spec.name : "");
  const changed = stored === null || !sameJson(spec, stored.spec);
  const isDirty = broken || !sameJson(spec, stored?.spec ?? withoutEmpty(kind.initial, kind.optional));
  useDraft(kind.plural, key, isDirty, { spec: form.spec, message, version });
  const isLeaving = useRef(false);
  const [tab, setTab] = useTab(stored !== null && kind.overview !== null ? "overview" : "form");

  const submit = (version: string | null) => {
    setUnchanged(false);
    const half = halfEdited(spec, stored?.spec);
    if (half.length > 0) {
      form.setErrors(half);
      setFailure({ error: new Problem(422, "The form is not complete", "", half) });
      return;
    }
    save.mutate(
      { name, version, spec, message },
      {
        onSuccess: (saved) => {
          setConflict(false);
          setFailure(null);
          form.setErrors([]);
          dropDraft(key);
          isLeaving.current = true;
          if (saved.revision === null) setUnchanged(true);
          else watch(saved.revision);
          if (stored === null) navigate(`/${kind.plural}/${saved.resource.name}`, { replace: true });
          else restart(saved.resource);
        },
        onError: (error) => {
          setConflict(error instanceof Problem && error.status === 412 && version !== null);
          form.setErrors(error instanceof Problem ? error.errors : []);
          setFailure({ error });
        },
      },
    );
  };

  return (
    <form
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        if (!broken && denial === null) submit(version);
      }}
    >
      <Stack gap="lg" maw={kind.overview ? 1100 : 900} mx="auto" ref={errorRef}>
        <div>
          <Breadcrumbs separator="›" fz="sm" mb={4}>
            <Anchor component={Link} to={`/${kind.plural}`} size="sm">
              {kind.title}
            </Anchor>
            <Text size="sm" c="dimmed">
              {stored ? stored.name : "new"}
            </Text>
          </Breadcrumbs>
          <Group justify="space-between" align="flex-start">
            <div>
              <Title order={1} size="h3" className="breaks" ff={stored ? "monospace" : undefined}>
                {stored ? stored.name : `New ${kind.singular}`}
              </Title>
              {stored && (
                <Text size="sm" c="dimmed">
                  changed <Age at={stored.meta.updated_at} ago /> by{" "}
                  <span className="mono">{stored.meta.updated_by}</span> in revision{" "}
                  <Anchor component={Link} to={`/revisions/${stored.meta.revision}`}>
                    {stored.meta.revision}
                  </Anchor>
                </Text>
              )}
            </div>
            {stored && (
              <DeleteResource
                kind={kind}
                name={stored.name}
                version={stored.meta.version}
                onDeleted={() => {
                  dropDraft(key);
                  isLeaving.current = true;
                  navigate(`/${kind.plural}`);
                }}
              />
            )}
          </Group>
        </div>

        {denial !== null && (
          <Alert color="gray" title="You can look at this, but not change it">
            {denial}
          </Alert>
        )}
        {draft && (
          <Restored
            at={draft.at}
            isIncomplete={draft.isIncomplete}
            isOld={stored !== null && draft.version !== stored.meta.version}
            discard={() => {
              dropDraft(key);
              restart(null);
            }}
          />
        )}

        {/* The form restarts after a save, so text that is typed meanwhile would be lost. */}
        <div inert={save.isPending}>
          <FormProvider form={form}>
            <Tabs value={tab} onChange={(next) => next !== null && setTab(next)} keepMounted={false}>
              <Tabs.List mb="md">
                {stored && kind.overview && (
                  <Tabs.Tab value="overview" disabled={broken}>
                    Overview
                  </Tabs.Tab>
                )}
                <Tabs.Tab value="form" disabled={broken}>
                  Form
                </Tabs.Tab>
                <Tabs.Tab value="raw">Specification</Tabs.Tab>
              </Tabs.List>
              {stored && kind.overview && (
                <Tabs.Panel value="overview">{kind.overview(stored.name)}</Tabs.Panel>
              )}
              <Tabs.Panel value="form">
                <fieldset disabled={denial !== null} className="bare">
                  {kind.form(stored === null)}
                </fieldset>
              </Tabs.Panel>
              <Tabs.Panel value="raw">
                <Paper p="lg">
                  <RawEditor onBroken={setBroken} readOnly={denial !== null} />
                </Paper>
              </Tabs.Panel>
            </Tabs>
          </FormProvider>
        </div>

        <Paper
          p="md"
          pos="sticky"
          bottom={12}
          shadow="md"
          style={{ zIndex: 2 }}
          display={tab === "overview" && !isDirty && !unchanged ? "none" : undefined}
        >
          <ErrorSummary error={failure?.error ?? null} unplaced={form.unplaced} total={form.errors.length} />
          <Group gap="sm" wrap="nowrap">
            <TextInput
              disabled={denial !== null}
              aria-label="Message of the revision"
              placeholder="Message of the revision (optional): why this change?"
              style={{ flex: 1, minWidth: 0 }}
              value={message}
              maxLength={300}
              onChange={(event) => setMessage(event.currentTarget.value)}
            />
            {unchanged && (
              <Text size="sm" c="dimmed" role="status">
                There are no changes to save
              </Text>
            )}
            <Button variant="default" component={Link} to={`/${kind.plural}`}>
              Cancel
            </Button>
            <Guard>
              <Button type="submit" loading={save.isPending} disabled={denial === null && (broken || !changed)}>
                {stored ? "Save" : `Create ${kind.singular}`}
              </Button>
            </Guard>
          </Group>
        </Paper>
      </Stack>
      <LeaveGuard
        isDirty={isDirty}
        isLeaving={isLeaving}
        discard={() => dropDraft(key)}
      />
      {conflict && stored && (
        <Conflict
          // After another conflict, the stored version is a different one.
          key={save.submittedAt}
          kind={kind}
          mine={spec}
          name={name}
          isSaving={save.isPending}
          close={() => setConflict(false)}
          reload={(theirs) => {
            dropDraft(key);
            restart(theirs);
          }}
          overwrite={submit}
        />
      )}
    </form>
  );
}

/** The tab that is open: it is part of the address, so that it outlives a save and a reload. */
function useTab(byDefault: string): [string, (tab: string) => void] {
  const [search, setSearch] = useSearchParams();
  const set = (tab: string) =>
    setSearch(
      (old) => {
        if (tab === byDefault) old.delete("tab");
        else old.set("tab", tab);
        return old;
      },
      { replace: true },
    );
  const asked = search.get("tab");
  const isKnown = asked === "form" || asked === "raw" || asked === byDefault;
  return [asked !== null && isKnown ? asked : byDefault, set];
}

/** Shows why a save failed, with the errors that no field shows. */
function ErrorSummary({
  error,
  unplaced,
  total,
}: {
  error: Error | null;
  unplaced: { field: string; message: string }[];
  total: number;
}) {
  if (!error || (error instanceof Problem && error.errors.length > 0 && total === 0)) return null;
  const placed = total - unplaced.length;
  const isUnknown = error instanceof Unanswered && error.outcome === "unknown";
  return (
    <Alert
      color="red"
      icon={<IconAlert />}
      role="alert"
      title={isUnknown ? "It is not known whether the changes were saved" : "The changes were not saved"}
      tabIndex={-1}
      data-error-summary
      mb="sm"
      mah="40vh"
      style={{ overflowY: "auto" }}
    >
      <Stack gap={4}>
        {total === 0 && (
          <Text size="sm">
            {error instanceof Problem && error.status === 412
              ? "Somebody has changed the resource meanwhile. Save again to see the differences."
              : messageOf(error)}
          </Text>
        )}
        {placed > 0 && (
          <Text size="sm">
            {placed === 1 ? "One field is marked." : `${placed} fields are marked.`}
          </Text>
        )}
        {unplaced.length > 0 && (
          <List size="sm">
            {unplaced.map((each) => (
              <List.Item key={`${each.field} ${each.message}`} className="breaks">
                {each.field !== "" && <span className="mono">{each.field}: </span>}
                {each.message}
              </List.Item>
            ))}
          </List>
        )}
      </Stack>
    </Alert>
  );
}

/** Says that the form begins with unsaved changes from earlier. */
function Restored({
  at,
  isIncomplete,
  isOld,
  discard,
}: {
  at: number;
  isIncomplete: boolean;
  isOld: boolean;
  discard: () => void;
}) {
  return (
    <Alert color="blue" title="Your unsaved changes are back" data-testid="draft">
      <Group justify="space-between" align="flex-end">
        <Text size="sm" style={{ flex: 1, minWidth: 240 }}>
          You made them <Age at={new Date(at).toISOString()} ago />.
          {isIncomplete && " Secrets and unknown fields were not kept: enter them again."}
          {isOld && " Somebody has changed the resource since then: save to see the differences."}
        </Text>
        <Button size="compact-sm" variant="default" onClick={discard}>
          Discard them
        </Button>
      </Group>
    </Alert>
  );
}

/** Asks before the user leaves a form with unsaved changes, whichever way. */
function LeaveGuard({
  isDirty,
  isLeaving,
  discard,
}: {
  isDirty: boolean;
  /** True if the form is left because the resource was saved or deleted. */
  isLeaving: RefObject<boolean>;
  discard: () => void;
}) {
  const blocker = useBlocker(
    ({ currentLocation, nextLocation }) =>
      isDirty && !isLeaving.current && currentLocation.pathname !== nextLocation.pathname,
  );
  useEffect(() => {
    if (!isDirty) return;
    const ask = (event: BeforeUnloadEvent) => event.preventDefault();
    window.addEventListener("beforeunload", ask);
    return () => window.removeEventListener("beforeunload", ask);
  }, [isDirty]);
  const stay = () => blocker.reset?.();
  return (
    <Modal
      opened={blocker.state === "blocked"}
      onClose={stay}
      title={<Text fw={600}>Leave without saving?</Text>}
    >
      <Stack gap="md">
        <Text size="sm">Your changes are not saved.</Text>
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={stay} data-autofocus>
            Keep editing
          </Button>
          <Button
            color="red"
            onClick={() => {
              discard();
              blocker.proceed?.();
            }}
          >
            Discard changes
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}

type ConflictProps = {
  kind: KindInfo;
  name: string;
  mine: Resource["spec"];
  isSaving: boolean;
  close: () => void;
  reload: (stored: Resource) => void;
  overwrite: (version: string | null) => void;
};

/** Somebody else has saved first: shows the difference between the stored version and the user's. */
function Conflict({ kind, name, mine, isSaving, close, reload, overwrite }: ConflictProps) {
  const current = useResource(kind.plural, name, "fresh");
  const deleted = current.error instanceof Problem && current.error.status === 404;
  const theirs = current.data;
  // A write without a response may have been committed.
  const isStored = theirs !== undefined && !deleted && !current.isFetching && sameJson(theirs.spec, mine);
  const shown = useWithoutSecrets(kind.plural, mine, FOR_DISPLAY);
  return (
    <Modal opened onClose={close} size="xl" returnFocus={false} title={<Text fw={600}>{isStored ? "Already saved" : "Changed meanwhile"}</Text>}>
      <Stack gap="md">
        {current.isFetching ? (
          <Loading what="the stored version" />
        ) : deleted ? (
          <Text size="sm">
            The {kind.singular} <span className="mono">{name}</span> was deleted while you were editing.
          </Text>
        ) : isStored ? (
          <Text size="sm">
            The {kind.singular} <span className="mono">{name}</span> is stored exactly as in your form, in revision{" "}
            {theirs.meta.revision}.
          </Text>
        ) : theirs ? (
          <>
            <Text size="sm">
              <span className="mono">{theirs.meta.updated_by}</span> changed {kind.singular}{" "}
              <span className="mono">{name}</span> <Age at={theirs.meta.updated_at} ago />, in revision{" "}
              {theirs.meta.revision}. If you save your version, these changes are made:
            </Text>
            <Paper style={{ maxHeight: "50vh", overflow: "auto" }}>
              {shown ? <Diff before={theirs.spec} after={shown} /> : <Loading what="the difference" />}
            </Paper>
          </>
        ) : (
          <Failed what="the stored version" error={current.error} retry={() => current.refetch()} />
        )}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={close}>
            Keep editing
          </Button>
          {theirs && !deleted && (
            <Button variant="default" onClick={() => reload(theirs)}>
              {isStored ? "Continue with the stored version" : "Reload and discard my changes"}
            </Button>
          )}
          {(theirs || deleted) && !isStored && (
            <Button
              color="red"
              loading={isSaving}
              disabled={current.isFetching}
              onClick={() => overwrite(deleted || !theirs ? null : theirs.meta.version)}
            >
              {deleted ? "Create it again" : "Overwrite"}
            </Button>
          )}
        </Group>
      </Stack>
    </Modal>
  );
}

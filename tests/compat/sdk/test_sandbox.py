"""The Python client as it comes: claims, commands, files, and the end of a sandbox.

Pools, made by tests/cluster/sdk.rs: `python` has standbys; `sleepy` has none, its sandboxes sleep when they are idle and take
no variables; `orphan` has no template.
"""

import io
import unittest

from kubernetes.client import ApiException

from k8s_agent_sandbox import (
    SandboxClaimFailedError,
    SandboxClient,
    SandboxNotFoundError,
    SandboxRequestError,
    SandboxTemplateNotFoundError,
    SandboxWarmPoolNotFoundError,
)

from support import (
    CONNECTION,
    LIMIT,
    NAMESPACE,
    ask_keeper,
    condition,
    pod,
    pods,
    start_keeper,
    until,
)


class SandboxTest(unittest.TestCase):
    def setUp(self):
        self.client = SandboxClient(connection_config=CONNECTION)
        self.addCleanup(self.client.delete_all)

    def create(self, pool="python", **options):
        return self.client.create_sandbox(pool, NAMESPACE, LIMIT, **options)

    def object(self, sandbox):
        return self.client.k8s_helper.get_sandbox(sandbox.sandbox_id, NAMESPACE)

    def wait_for_standby(self):
        read = self.client.k8s_helper.custom_objects_api.get_namespaced_custom_object

        def ready():
            pool = read("extensions.agents.x-k8s.io", "v1beta1", NAMESPACE, "sandboxwarmpools", "python")
            return pool.get("status", {}).get("readyReplicas", 0) > 0

        until("a standby", ready)


class Claims(SandboxTest):
    def test_a_claim_gets_a_standby(self):
        self.wait_for_standby()
        sandbox = self.create(labels={"team": "red"}, pod_labels={"sandbox.users.io/team": "red"})
        # A standby keeps its name, and so does its pod.
        self.assertTrue(sandbox.sandbox_id.startswith("python-"), sandbox.sandbox_id)
        self.assertTrue(sandbox.claim_name.startswith("sandbox-claim-"), sandbox.claim_name)
        self.assertEqual(sandbox.get_pod_name(), sandbox.sandbox_id)
        self.assertEqual(sandbox.status(), ("SandboxReady", "Pod is Ready; Service Exists"))
        self.assertEqual(
            sandbox.get_service_fqdn(), f"{sandbox.sandbox_id}.{NAMESPACE}.svc.cluster.local"
        )
        self.assertEqual(sandbox.get_pod_ip(), pod(self.client, sandbox.sandbox_id).status.pod_ip)
        self.assertTrue(sandbox.get_sandbox_name_hash())
        labels = self.object(sandbox)["metadata"]["labels"]
        self.assertEqual(labels["agents.x-k8s.io/launch-type"], "warm")
        self.assertEqual(labels["agents.x-k8s.io/created-by"], "python-client")
        self.assertEqual(self.client.list_active_sandboxes(), [(NAMESPACE, sandbox.claim_name)])
        self.assertEqual(self.client.list_all_sandboxes(NAMESPACE, "team=red"), [sandbox.claim_name])
        self.assertEqual(
            self.client.get_sandbox_claim_warmpool_name(sandbox.claim_name, NAMESPACE), "python"
        )
        until(
            "the label on the pod",
            lambda: pod(self.client, sandbox.sandbox_id).metadata.labels.get("sandbox.users.io/team") == "red",
        )

    def test_an_environment_of_its_own_is_a_cold_start(self):
        sandbox = self.create(env={"WORD": "of its own"}, pod_annotations={"example.org/note": "cold"})
        self.assertEqual(sandbox.sandbox_id, sandbox.claim_name)
        self.assertEqual(self.object(sandbox)["metadata"]["labels"]["agents.x-k8s.io/launch-type"], "cold")
        self.assertEqual(sandbox.commands.run("sh -c 'echo $WORD'").stdout, "of its own\n")
        annotations = pod(self.client, sandbox.sandbox_id).metadata.annotations
        self.assertEqual(annotations["example.org/note"], "cold")

    def test_what_cannot_be_is_said_at_once(self):
        with self.assertRaises(SandboxWarmPoolNotFoundError):
            self.create("nowhere", labels={"team": "none"})
        with self.assertRaises(SandboxTemplateNotFoundError):
            self.create("orphan", labels={"team": "none"})
        with self.assertRaisesRegex(SandboxClaimFailedError, "InvalidMetadata"):
            self.create(labels={"team": "none"}, pod_labels={"example.org/team": "red"})
        with self.assertRaisesRegex(SandboxClaimFailedError, "EnvVarsInjectionRejected"):
            self.create("sleepy", labels={"team": "none"}, env={"WORD": "unwanted"})
        until("no claims", lambda: not self.client.list_all_sandboxes(NAMESPACE, "team=none"))

    def test_a_claim_has_one_sandbox_whoever_asks(self):
        first = self.create(claim_name="mine")
        self.addCleanup(self.client.delete_sandbox, "mine", NAMESPACE)
        first.files.write("note", "left by the first")
        other = SandboxClient(connection_config=CONNECTION)
        with self.assertRaises(ApiException) as refused:
            other.create_sandbox("python", NAMESPACE, LIMIT, claim_name="mine")
        self.assertEqual(refused.exception.status, 409)
        adopted = other.create_sandbox("python", NAMESPACE, LIMIT, claim_name="mine", adopt_existing=True)
        found = SandboxClient(connection_config=CONNECTION).get_sandbox("mine", NAMESPACE)
        for sandbox in (adopted, found):
            self.assertEqual(sandbox.sandbox_id, first.sandbox_id)
            self.assertEqual(sandbox.files.read("note"), b"left by the first")
            sandbox.close_connection()


class Work(SandboxTest):
    def test_commands_run(self):
        sandbox = self.create()
        done = sandbox.commands.run("echo 'two  words'")
        self.assertEqual((done.stdout, done.stderr, done.exit_code), ("two  words\n", "", 0))
        failed = sandbox.commands.run("sh -c 'echo out; echo err >&2; exit 3'")
        self.assertEqual((failed.stdout, failed.stderr, failed.exit_code), ("out\n", "err\n", 3))
        late = sandbox.commands.run("sleep 60", command_timeout=1)
        self.assertTrue(late.timed_out, late)
        self.assertEqual(sandbox.commands.run("hostname").stdout.strip(), sandbox.sandbox_id)
        self.assertIn("Starting gVisor", sandbox.commands.run("dmesg").stdout)

    def test_files_come_back_as_they_were(self):
        sandbox = self.create()
        every_byte = bytes(range(256)) + b"\r\n--\r\n\r\n"
        large = every_byte * 2000
        sandbox.files.write("text", "größer\n")
        sandbox.files.write("deep/below/bytes", every_byte)
        sandbox.files.write("deep/streamed", io.BytesIO(large))
        self.assertEqual(sandbox.files.read("text"), "größer\n".encode())
        self.assertEqual(sandbox.files.read("deep/below/bytes"), every_byte)
        streamed = io.BytesIO()
        self.assertEqual(sandbox.files.read_to("deep/streamed", streamed), len(large))
        self.assertEqual(streamed.getvalue(), large)

        entries = {entry.name: (entry.type, entry.size) for entry in sandbox.files.list("deep")}
        self.assertEqual(set(entries), {"below", "streamed"})
        self.assertEqual(entries["below"][0], "directory")
        self.assertEqual(entries["streamed"], ("file", len(large)))
        self.assertTrue(sandbox.files.exists("deep/below"))
        self.assertFalse(sandbox.files.exists("deep/above"))
        with self.assertRaises(SandboxRequestError) as missing:
            sandbox.files.read("deep/above")
        self.assertEqual(missing.exception.status_code, 404)
        # Commands see the same files.
        self.assertEqual(sandbox.commands.run("cat text").stdout, "größer\n")
        sandbox.commands.run("sh -c 'echo made inside > made'")
        self.assertEqual(sandbox.files.read("made"), b"made inside\n")

    def test_a_sandbox_that_fell_asleep_answers_as_if_it_had_not(self):
        sandbox = self.create("sleepy")
        word = start_keeper(sandbox)
        before = pod(self.client, sandbox.sandbox_id)
        for _ in range(2):
            asked = ask_keeper(sandbox)[1]
            until("the sandbox to sleep", lambda: self.is_dormant(sandbox))
            self.assertEqual(sandbox.status()[0], "SandboxReady")
            self.assertEqual(ask_keeper(sandbox), (word, asked + 1))
            # The commands keep it awake for as long as it takes until that is said.
            until(
                "a word that it is awake",
                lambda: sandbox.commands.run("true").exit_code == 0 and not self.is_dormant(sandbox),
            )
        after = pod(self.client, sandbox.sandbox_id)
        self.assertEqual(after.metadata.uid, before.metadata.uid)
        self.assertEqual(after.status.container_statuses[0].restart_count, 0)

    def is_dormant(self, sandbox):
        return (condition(self.object(sandbox), "Dormant") or {}).get("status") == "True"


class Ends(SandboxTest):
    def test_a_terminated_sandbox_is_gone(self):
        sandbox = self.create()
        claim, name = sandbox.claim_name, sandbox.sandbox_id
        sandbox.commands.run("true")
        sandbox.terminate()
        self.assertFalse(sandbox.is_active)
        self.assertIsNone(sandbox.claim_name)
        until("the claim to go", lambda: claim not in self.client.list_all_sandboxes(NAMESPACE))
        until("the sandbox to go", lambda: sandbox.status()[0] == "SandboxNotFound")
        until("the pod to go", lambda: name not in pods(self.client))
        sandbox.terminate()
        with self.assertRaises(SandboxNotFoundError):
            self.client.get_sandbox(claim, NAMESPACE, resolve_timeout=1)
        self.assertEqual(self.client.list_active_sandboxes(), [])

    def test_a_sandbox_ends_when_it_was_to_end(self):
        sandbox = self.create(shutdown_after_seconds=6)
        claim, name = sandbox.claim_name, sandbox.sandbox_id
        self.assertEqual(sandbox.commands.run("echo here").stdout, "here\n")
        until("the claim to go", lambda: claim not in self.client.list_all_sandboxes(NAMESPACE))
        until("the pod to go", lambda: name not in pods(self.client))

    def test_leaving_the_client_ends_what_it_has_made(self):
        with SandboxClient(connection_config=CONNECTION) as client:
            made = client.create_sandbox("python", NAMESPACE, LIMIT).claim_name
            kept = client.create_sandbox("python", NAMESPACE, LIMIT, claim_name="kept").claim_name
        self.addCleanup(self.client.delete_sandbox, "kept", NAMESPACE)
        until("the claim to go", lambda: made not in self.client.list_all_sandboxes(NAMESPACE))
        self.assertIn(kept, self.client.list_all_sandboxes(NAMESPACE))


if __name__ == "__main__":
    unittest.main()

"""The Python client for pod snapshots as it comes: suspend and resume with the memory kept.

Pool `python`, made by tests/cluster/sdk.rs. The cluster serves `podsnapshot.gke.io/v1`.
"""

import unittest

from k8s_agent_sandbox.gke_extensions.snapshots import PodSnapshotSandboxClient

from support import CONNECTION, LIMIT, NAMESPACE, ask_keeper, pod, pods, start_keeper


class Snapshots(unittest.TestCase):
    def setUp(self):
        self.client = PodSnapshotSandboxClient(connection_config=CONNECTION)
        self.addCleanup(self.client.delete_all)
        self.sandbox = self.client.create_sandbox("python", NAMESPACE, LIMIT)
        self.word = start_keeper(self.sandbox)

    def suspend(self, **options):
        """Suspends it, and returns the snapshot's name."""
        suspended = self.sandbox.suspend(**options)
        self.assertTrue(suspended.success, suspended)
        self.assertTrue(self.sandbox.is_suspended())
        self.assertNotIn(self.sandbox.sandbox_id, pods(self.client))
        return suspended.snapshot_response and suspended.snapshot_response.snapshot_uid

    def kept(self):
        """Names of the snapshots that are ready, the newest first."""
        listed = self.sandbox.snapshots.list()
        self.assertTrue(listed.success, listed)
        for snapshot in listed.snapshots:
            self.assertEqual(snapshot.source_pod, self.sandbox.sandbox_id)
            self.assertEqual(snapshot.status, "Ready")
        return [snapshot.snapshot_uid for snapshot in listed.snapshots]

    def test_suspend_and_resume_keep_the_memory(self):
        self.sandbox.files.write("note", "written before")
        taken = []
        for _ in range(2):
            asked = ask_keeper(self.sandbox)[1]
            before = pod(self.client, self.sandbox.get_pod_name()).metadata.uid
            snapshot = self.suspend()
            taken.insert(0, snapshot)
            self.assertEqual(self.kept(), taken)

            resumed = self.sandbox.resume()
            self.assertTrue(resumed.success, resumed)
            self.assertTrue(resumed.restored_from_snapshot, resumed)
            self.assertEqual(resumed.snapshot_uid, snapshot)
            self.assertFalse(self.sandbox.is_suspended())
            self.assertNotEqual(pod(self.client, self.sandbox.get_pod_name()).metadata.uid, before)
            self.assertEqual(ask_keeper(self.sandbox), (self.word, asked + 1))
            self.assertEqual(self.sandbox.files.read("note"), b"written before")

    def test_an_older_snapshot_is_restored(self):
        asked = ask_keeper(self.sandbox)[1]
        older = self.sandbox.snapshots.create("older")
        self.assertTrue(older.success, older)
        # The sandbox runs on, and what it does from here on is not in that snapshot.
        self.assertEqual(ask_keeper(self.sandbox), (self.word, asked + 1))
        running = self.sandbox.restore(older.snapshot_uid)
        self.assertFalse(running.success, running)
        self.suspend()
        nothing = self.sandbox.restore("nothing-of-that-name")
        self.assertFalse(nothing.success, nothing)

        restored = self.sandbox.restore(older.snapshot_uid)
        self.assertTrue(restored.success, restored)
        self.assertTrue(restored.restored_from_snapshot, restored)
        self.assertEqual(restored.snapshot_uid, older.snapshot_uid)
        self.assertEqual(ask_keeper(self.sandbox), (self.word, asked + 1))

    def test_without_a_snapshot_it_starts_anew(self):
        self.suspend(snapshot_before_suspend=False)
        resumed = self.sandbox.resume()
        self.assertTrue(resumed.success, resumed)
        self.assertFalse(resumed.restored_from_snapshot, resumed)
        self.assertNotEqual(start_keeper(self.sandbox), self.word)

    def test_snapshots_go_when_they_are_deleted(self):
        taken = []
        for name in ("one", "two", "three"):
            created = self.sandbox.snapshots.create(name)
            self.assertTrue(created.success, created)
            taken.append(created.snapshot_uid)
        self.assertEqual(set(self.kept()), set(taken))
        deleted = self.sandbox.snapshots.delete(taken[0])
        self.assertTrue(deleted.success, deleted)
        self.assertEqual(set(self.kept()), set(taken[1:]))
        deleted = self.sandbox.snapshots.delete_all()
        self.assertTrue(deleted.success, deleted)
        self.assertEqual(set(deleted.deleted_snapshots), set(taken[1:]))
        self.assertEqual(self.kept(), [])
        # What asked for them goes with the handle.
        triggers = self.sandbox.snapshots.created_manual_triggers
        self.assertEqual(len(triggers), 3)
        self.sandbox.terminate()
        self.assertEqual(self.triggers() & set(triggers), set())

    def triggers(self):
        listed = self.client.k8s_helper.custom_objects_api.list_namespaced_custom_object(
            "podsnapshot.gke.io", "v1", NAMESPACE, "podsnapshotmanualtriggers"
        )
        return {trigger["metadata"]["name"] for trigger in listed["items"]}


if __name__ == "__main__":
    unittest.main()

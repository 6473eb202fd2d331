"""The Python client for asyncio as it comes: the same protocol, over other libraries.

Pool `python`, made by tests/cluster/sdk.rs.
"""

import asyncio
import io
import unittest

from k8s_agent_sandbox import (
    AsyncSandboxClient,
    SandboxNotFoundError,
    SandboxRequestError,
    SandboxWarmPoolNotFoundError,
)

from support import CONNECTION, LIMIT, NAMESPACE


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.client = AsyncSandboxClient(connection_config=CONNECTION)
        await self.enterAsyncContext(self.client)

    async def create(self, pool="python"):
        return await self.client.create_sandbox(pool, NAMESPACE, LIMIT)

    async def test_a_sandbox_from_its_claim_to_its_end(self):
        sandbox = await self.create()
        self.assertEqual((await sandbox.status())[0], "SandboxReady")
        done = await sandbox.commands.run("sh -c 'echo out; echo err >&2; exit 3'")
        self.assertEqual((done.stdout, done.stderr, done.exit_code), ("out\n", "err\n", 3))

        large = bytes(range(256)) * 2000
        await sandbox.files.write("deep/text", "größer\n")
        await sandbox.files.write("deep/streamed", io.BytesIO(large))
        self.assertEqual(await sandbox.files.read("deep/text"), "größer\n".encode())
        self.assertEqual(await sandbox.files.read("deep/streamed"), large)
        self.assertEqual({entry.name for entry in await sandbox.files.list("deep")}, {"text", "streamed"})
        self.assertTrue(await sandbox.files.exists("deep/text"))
        self.assertFalse(await sandbox.files.exists("text"))
        with self.assertRaises(SandboxRequestError) as missing:
            await sandbox.files.read("text")
        self.assertEqual(missing.exception.status_code, 404)

        claim = sandbox.claim_name
        found = await self.client.get_sandbox(claim, NAMESPACE)
        self.assertEqual(found.sandbox_id, sandbox.sandbox_id)
        await sandbox.terminate()
        async with asyncio.timeout(LIMIT):
            while (await sandbox.status())[0] != "SandboxNotFound":
                await asyncio.sleep(0.1)
        with self.assertRaises(SandboxNotFoundError):
            await self.client.get_sandbox(claim, NAMESPACE, resolve_timeout=1)

    async def test_two_at_once_are_two(self):
        one, other = await asyncio.gather(self.create(), self.create())
        self.assertNotEqual(one.sandbox_id, other.sandbox_id)
        names = await asyncio.gather(*(sandbox.commands.run("hostname") for sandbox in (one, other)))
        self.assertEqual([name.stdout.strip() for name in names], [one.sandbox_id, other.sandbox_id])

    async def test_a_pool_that_is_not_there(self):
        with self.assertRaises(SandboxWarmPoolNotFoundError):
            await self.create("nowhere")


if __name__ == "__main__":
    unittest.main()

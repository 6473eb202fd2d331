//! A peer that streams while the guest is saved: not a byte is lost, and none comes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dormouse_core::{Reason, Rung};
use dormouse_testkit::guest::WorldGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason};
use dormouse_testkit::{Pod, PodSpec};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::run;
use crate::hibernate::hibernated;
use crate::support::{LIMIT, ask};

/// Writes as fast as it is read, until it is told to end; its position says what each byte is.
struct Stream {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<std::io::Result<u64>>,
}

impl Stream {
    async fn begin(pod: &Pod) -> Self {
        let mut socket = TcpStream::connect((pod.ip, WorldGuest::STREAM_PORT))
            .await
            .unwrap();
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&sent), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut number = 0_u64;
            while !end.load(Ordering::Relaxed) {
                socket.write_all(&block(number)).await?;
                number += 1;
                count.store(number * BLOCK, Ordering::Relaxed);
                // Not to fill a whole disk's worth of memory on a fast machine: some 40 MiB/s.
                tokio::time::sleep(std::time::Duration::from_micros(1500)).await;
            }
            socket.shutdown().await?;
            Ok(number)
        });
        Self { sent, stop, task }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until more of it is on its way.
    async fn flows(&self) {
        let before = self.sent();
        wait::until("the stream to flow", LIMIT, async || {
            anyhow::ensure!(
                self.sent() >= before + (4 << 20),
                "{} bytes",
                self.sent() - before
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        tokio::time::timeout(LIMIT, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }
}

const BLOCK: u64 = 64 << 10;

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat((BLOCK / 8) as usize)
}

/// All that was sent has arrived, in order.
async fn whole(pod: &Pod, blocks: u64) {
    let received = wait::until("the rest of the stream", LIMIT, async || {
        let received = ask(pod, "/received").await;
        anyhow::ensure!(
            received["bytes"] == blocks * BLOCK,
            "{} of {}",
            received["bytes"],
            blocks * BLOCK
        );
        Ok(received)
    })
    .await
    .unwrap();
    let mut hash = Sha256::new();
    for number in 0..blocks {
        hash.update(block(number));
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(received["sha256"], hash.as_str());
}

async fn pod(rig: &Rig, policy: &str) -> Pod {
    let spec = PodSpec::new("sink")
        .annotation("dormouse.dev/resume-policy", policy)
        .container(WorldGuest::default().container());
    run(rig, spec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_snapshots() {
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, "OnDemand").await;
    let stream = Stream::begin(&pod).await;
    for _ in 0..4 {
        stream.flows().await;
        rig.snapshot(&pod).await.unwrap();
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    }
    stream.flows().await;
    whole(&pod, stream.end().await).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_hibernations() {
    let rig = Rig::plain().await.unwrap();
    // Only an order wakes it, so that it sleeps although somebody talks to it.
    let manual = pod(&rig, "Manual").await;
    let stream = Stream::begin(&manual).await;
    for _ in 0..3 {
        stream.flows().await;
        hibernated(&rig, &manual).await;
        rig.wake(&manual).await.unwrap();
    }
    stream.flows().await;
    whole(&manual, stream.end().await).await;
    // This one is woken by the stream itself, in whatever step it is met.
    let pod = pod(&rig, "OnDemand").await;
    let stream = Stream::begin(&pod).await;
    let mut moved = 0;
    for _ in 0..6 {
        stream.flows().await;
        match rig.hibernate(&pod).await {
            Ok(outcome) => moved += u32::from(outcome.moved),
            Err(refused) => assert_eq!(reason(&refused), Some(Reason::WakeWon), "{refused}"),
        }
    }
    println!("hibernated {moved} times under way");
    stream.flows().await;
    whole(&pod, stream.end().await).await;
    rig.stop().await.unwrap();
}

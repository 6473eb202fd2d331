//! A burst of claims in the middle of which the controller ends, or is late to learn that it does not lead any more, and
//! another one goes on.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::*;

const CLAIMS: usize = 100;
const STANDBYS: usize = 120;
/// As many as two controllers that do not know of each other take, so that nobody has to wait for a new one.
const ENOUGH_FOR_TWO: usize = 2 * CLAIMS;
/// Runs, each with another seed.
const RUNS: u64 = 20;
/// A claim takes three writes.
const WRITES: usize = 3 * CLAIMS;
/// Looks at all claims until all is at rest. It takes two, and one more for each standby that somebody else has taken.
const LOOKS: usize = 8;

fn named(index: usize) -> SandboxClaim {
    let mut claim = claim();
    claim.metadata.name = Some(format!("claim-{index:03}"));
    claim.metadata.uid = Some(format!("claim-{index:03}-uid"));
    claim
}

/// An API server with standbys and as many claims, of which nobody has seen anything yet.
fn burst(standbys: usize) -> Server {
    let server = Server::empty();
    for index in 0..standbys {
        server.put("sandboxes", &standby(&pool(), &format!("box-{index:03}"), true));
    }
    for index in 0..CLAIMS {
        server.put("sandboxclaims", &named(index));
    }
    server
}

impl Controller {
    /// Looks at all claims at once, in an order of its own; how many it has to look at again.
    async fn look_at_all(&self, random: &mut fastrand::Rng) -> usize {
        let mut order: Vec<usize> = (0..CLAIMS).collect();
        random.shuffle(&mut order);
        let looks = order.into_iter().map(|index| {
            let context = Arc::clone(&self.context);
            reconcile(Arc::new(named(index)), context)
        });
        let done = join_all(looks).await;
        done.iter().filter(|outcome| outcome.is_err()).count()
    }

    /// Works as the one that leads, until there is nothing left to write.
    async fn finish(&self, server: &Server, random: &mut fastrand::Rng) {
        for _ in 0..LOOKS {
            server.log();
            let failed = self.look_at_all(random).await;
            if failed == 0 && server.log().is_empty() {
                return;
            }
            self.hear(server);
        }
        panic!("it does not come to rest: {:?}", server.log());
    }
}

/// Each claim is ready, and told of the one sandbox that it owns; all others are the pool's.
fn assert_one_each(server: &Server, standbys: usize, run: &str) {
    let mut of_claims = BTreeSet::new();
    let mut others = 0;
    for sandbox in server.all::<Sandbox>("sandboxes") {
        match owner(&sandbox) {
            Some("pool-uid") => others += 1,
            Some(claim) => assert!(of_claims.insert(claim.to_owned()), "{run}: {claim} has two"),
            None => panic!("{run}: {:?} is nobody's", sandbox.metadata.name),
        }
    }
    assert_eq!(of_claims.len(), CLAIMS, "{run}");
    assert!(others <= standbys - CLAIMS, "{run}: {others} are left");
    let sandboxes = server.all::<Sandbox>("sandboxes");
    let mut names = BTreeSet::new();
    for claim in server.all::<SandboxClaim>("sandboxclaims") {
        let name =
            told(&claim).unwrap_or_else(|| panic!("{run}: {:?} was told nothing", claim.metadata.name));
        assert!(is_ready(&claim), "{run}: {name}");
        let own = sandboxes
            .iter()
            .find(|sandbox| objects::name(&sandbox.metadata) == name);
        assert_eq!(own.and_then(owner), claim.metadata.uid.as_deref(), "{run}");
        assert!(names.insert(name), "{run}: a sandbox with two claims");
    }
}

#[tokio::test]
async fn wherever_in_a_burst_the_controller_ends_every_claim_gets_one_sandbox() {
    for seed in 0..RUNS {
        let mut random = fastrand::Rng::with_seed(seed);
        let server = burst(STANDBYS);
        let writes = random.usize(0..=WRITES);
        server.takes(writes);
        Controller::of(&server).look_at_all(&mut random).await;
        server.takes(usize::MAX);
        let heir = Controller::of(&server);
        heir.finish(&server, &mut random).await;
        let run = format!("seed {seed}, after {writes} writes");
        assert_one_each(&server, STANDBYS, &run);
        // Nothing was taken from the pool beside what the claims have.
        assert_eq!(server.all::<Sandbox>("sandboxes").len(), STANDBYS, "{run}");
    }
}

#[tokio::test]
async fn one_that_is_late_to_learn_of_its_heir_leaves_no_claim_with_two() {
    for seed in 0..RUNS {
        let mut random = fastrand::Rng::with_seed(seed);
        let server = burst(ENOUGH_FOR_TWO);
        let late = Controller::of(&server);
        let writes = random.usize(0..=WRITES);
        server.takes(writes);
        late.look_at_all(&mut random).await;
        server.takes(usize::MAX);
        let heir = Controller::of(&server);
        // Both at once, the late one with what it has known all along.
        let mut other = random.fork();
        tokio::join!(late.look_at_all(&mut other), heir.look_at_all(&mut random));
        drop(late);
        heir.hear(&server);
        heir.finish(&server, &mut random).await;
        let run = format!("seed {seed}, after {writes} writes");
        assert_one_each(&server, ENOUGH_FOR_TWO, &run);
    }
}

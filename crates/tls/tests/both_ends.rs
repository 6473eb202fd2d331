//! Both ends of a connection, with the certificates that they really have.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use dormouse_tls::{
    Authority, AuthorityError, Dialer, Issued, LEAST_LIFETIME, LIFETIME, Listener, Name, Request, inspect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

struct Agent {
    certificate: String,
    key: String,
}

fn agent(authority: &Authority, node: &str, now: SystemTime) -> Agent {
    let name = Name::of_node(node).unwrap();
    let request = Request::new(&name).unwrap();
    Agent {
        certificate: authority.grant(&request.request, &name, now, LIFETIME).unwrap(),
        key: request.key,
    }
}

/// Whether a caller can have a word with a server.
async fn speak(server: &Listener, caller: &Dialer, called: &str) -> bool {
    let (near, far) = duplex(64 << 10);
    let name = Name::of_node(called).unwrap();
    let answer = async {
        let mut stream = server.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.shutdown().await
    };
    let ask = async {
        let mut stream = caller.greet(&name, near).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let (answered, asked) = tokio::join!(answer, ask);
    answered.is_ok() && asked.is_ok_and(|text| text == "x")
}

fn listener(agent: &Agent, bundle: &str) -> Listener {
    Listener::new(&agent.certificate, &agent.key, bundle, Name::of_controller()).unwrap()
}

fn dialer(issued: &Issued, bundle: &str) -> Dialer {
    Dialer::new(&issued.certificate, &issued.key, bundle).unwrap()
}

#[tokio::test]
async fn each_end_speaks_to_the_other_and_to_nobody_else() {
    let now = SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let bundle = authority.certificate();
    let one = agent(&authority, "one", now);
    let server = listener(&one, bundle);
    let controller = dialer(&authority.issue_controller(now, LIFETIME).unwrap(), bundle);
    assert!(speak(&server, &controller, "one").await);
    // Another node's name.
    assert!(!speak(&server, &controller, "two").await);
    // An agent that calls an agent.
    let two = agent(&authority, "two", now);
    let posing = Dialer::new(&two.certificate, &two.key, bundle).unwrap();
    assert!(!speak(&server, &posing, "one").await);
    // A controller that another authority vouches for, and an agent that one does.
    let other = Authority::generate(now).unwrap();
    let forged = dialer(&other.issue_controller(now, LIFETIME).unwrap(), bundle);
    assert!(!speak(&server, &forged, "one").await);
    let forged = listener(&agent(&other, "one", now), bundle);
    assert!(!speak(&forged, &controller, "one").await);
    // The controller's certificate does not serve.
    let issued = authority.issue_controller(now, LIFETIME).unwrap();
    let posing = Listener::new(&issued.certificate, &issued.key, bundle, Name::of_controller()).unwrap();
    assert!(!speak(&posing, &controller, "one").await);
}

#[tokio::test]
async fn what_has_expired_does_not_count_and_can_be_replaced_on_the_way() {
    let now = SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let bundle = authority.certificate();
    let controller = dialer(&authority.issue_controller(now, LIFETIME).unwrap(), bundle);
    let stale = agent(&authority, "one", now - 2 * LIFETIME);
    let server = listener(&stale, bundle);
    assert!(!speak(&server, &controller, "one").await);
    let fresh = agent(&authority, "one", now);
    server
        .replace(&fresh.certificate, &fresh.key, bundle, Name::of_controller())
        .unwrap();
    assert!(speak(&server, &controller, "one").await);
    let stale = dialer(
        &authority.issue_controller(now - 2 * LIFETIME, LIFETIME).unwrap(),
        bundle,
    );
    assert!(!speak(&server, &stale, "one").await);
}

#[tokio::test]
async fn two_authorities_count_while_one_takes_over_from_the_other() {
    let now = SystemTime::now();
    let (old, new) = (
        Authority::generate(now).unwrap(),
        Authority::generate(now).unwrap(),
    );
    let both = format!("{}{}", new.certificate(), old.certificate());
    let server = listener(&agent(&old, "one", now), &both);
    let controller = dialer(&new.issue_controller(now, LIFETIME).unwrap(), &both);
    assert!(speak(&server, &controller, "one").await);
}

#[test]
fn a_request_about_somebody_else_is_refused() {
    let now = SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let (one, two) = (Name::of_node("one").unwrap(), Name::of_node("two").unwrap());
    let request = Request::new(&two).unwrap();
    let refused = authority
        .grant(&request.request, &one, now, LIFETIME)
        .unwrap_err();
    assert!(matches!(refused, AuthorityError::Stranger { .. }), "{refused}");
    let controller = Request::new(&Name::of_controller()).unwrap();
    assert!(authority.grant(&controller.request, &one, now, LIFETIME).is_err());
    assert!(matches!(
        authority.grant("nothing", &one, now, LIFETIME),
        Err(AuthorityError::Request(_))
    ));
}

#[test]
fn an_authority_is_the_same_when_it_comes_back() {
    let now = SystemTime::now();
    let authority = Authority::generate(now).unwrap();
    let again = Authority::load(authority.certificate(), authority.key()).unwrap();
    assert_eq!(again.certificate(), authority.certificate());
    let issued = again.issue_controller(now, LIFETIME).unwrap();
    let seen = inspect(&issued.certificate).unwrap();
    assert!(seen.not_after > now + LIFETIME - Duration::from_secs(2));
    assert!(seen.renew_at() < now + LIFETIME && seen.renew_at() > now);
    // One that counts for a moment is good for some of it.
    let least = LEAST_LIFETIME;
    let short = again.issue_controller(now, least).unwrap();
    let seen = inspect(&short.certificate).unwrap();
    assert!(seen.not_after <= now + least);
    assert!(seen.renew_at() < now + least / 2 && seen.renew_at() > now + least / 6);
    assert_eq!(inspect("nothing"), None);
    assert!(Authority::load("nothing", "nothing").is_err());
}

//! Policy rules that keep frames from the node's own stack.
//!
//! A new namespace has three rules: 0 `lookup local`, 32766 `lookup main`, 32767 `lookup default`. Rule 0 is
//! what makes the stack feel addressed, so something has to come before it. The same steps in both families,
//! in this order, so that there is a rule `lookup local` at every moment:
//!
//! | begin | end |
//! |---|---|
//! | add 1 `lookup local` | add 0 `lookup local` |
//! | add 0 `iif eth0 blackhole` | remove 0 `iif eth0 blackhole` |
//! | remove 0 `lookup local` | remove 1 `lookup local` |
//!
//! A blackhole drops silently, whether the namespace forwards or not; `unreachable` and `prohibit` would
//! answer by ICMP. The rule names its interface: what the kernel looks up for itself (the way to a gateway
//! when a route is added) has none, and is not meant. The rules carry a number of ours for who made them,
//! by which they are known again.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::{Doing, LinkError};
use super::record::NetworkRecord;
use super::write::done_already;
use crate::netlink::Netlink;

/// Who made the rules; the kernel gives no meaning to numbers above 4, and no daemon is known by this one.
const OURS: RouteProtocol = RouteProtocol::Other(221);
const TABLE_LOCAL: u8 = 255;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A rule of the kinds that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// 0 `lookup local`, as the kernel made it.
    First,
    /// 1 `lookup local`, ours.
    Second,
    /// 0 `iif NAME blackhole`, ours.
    Blackhole(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Add(Rule),
    Remove(Rule),
}

pub(super) fn begin(
    netlink: &mut Netlink,
    record: &NetworkRecord,
    doing: &Doing<'_>,
) -> Result<(), LinkError> {
    let names: Vec<&str> = record.interfaces.iter().map(|i| i.name.as_str()).collect();
    for family in FAMILIES {
        let there = rules(netlink, family, doing)?;
        run(netlink, family, steps_to_begin(&there, &names), doing)?;
    }
    Ok(())
}

pub(super) fn end(netlink: &mut Netlink, doing: &Doing<'_>) -> Result<(), LinkError> {
    for family in FAMILIES {
        let there = rules(netlink, family, doing)?;
        run(netlink, family, steps_to_end(&there), doing)?;
    }
    Ok(())
}

pub(super) fn is_on(netlink: &mut Netlink, doing: &Doing<'_>) -> Result<bool, LinkError> {
    for family in FAMILIES {
        let blackhole = |rule: &Rule| matches!(rule, Rule::Blackhole(_));
        if rules(netlink, family, doing)?.iter().any(blackhole) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn steps_to_begin(there: &[Rule], names: &[&str]) -> Vec<Step> {
    let mut steps = Vec::new();
    // Somebody who has moved the first rule has moved it behind the blackhole, too.
    let first = there.contains(&Rule::First);
    if first && !there.contains(&Rule::Second) {
        steps.push(Step::Add(Rule::Second));
    }
    for name in names {
        let blackhole = Rule::Blackhole((*name).to_owned());
        if !there.contains(&blackhole) {
            steps.push(Step::Add(blackhole));
        }
    }
    if first {
        steps.push(Step::Remove(Rule::First));
    }
    steps
}

fn steps_to_end(there: &[Rule]) -> Vec<Step> {
    let mut steps = Vec::new();
    let second = there.contains(&Rule::Second);
    if second && !there.contains(&Rule::First) {
        steps.push(Step::Add(Rule::First));
    }
    for rule in there {
        if matches!(rule, Rule::Blackhole(_)) {
            steps.push(Step::Remove(rule.clone()));
        }
    }
    if second {
        steps.push(Step::Remove(Rule::Second));
    }
    steps
}

fn rules(netlink: &mut Netlink, family: AddressFamily, doing: &Doing<'_>) -> Result<Vec<Rule>, LinkError> {
    let mut question = RuleMessage::default();
    question.header.family = family;
    let answers = match netlink.dump(&RouteNetlinkMessage::GetRule(question)) {
        // No IPv6 on this node.
        Err(error) if unknown_family(&error, family) => return Ok(Vec::new()),
        answers => answers.map_err(doing.failed("list the policy rules", ""))?,
    };
    let known = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRule(message) => rule(message),
        _ => None,
    });
    Ok(known.collect())
}

fn unknown_family(error: &std::io::Error, family: AddressFamily) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    family == AddressFamily::Inet6 && matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

fn rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let (mut priority, mut protocol, mut interface) = (0, RouteProtocol::Unspec, None);
    let mut table = u32::from(header.table);
    let mut selects =
        header.src_len != 0 || header.dst_len != 0 || header.tos != 0 || !header.flags.is_empty();
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(p) => priority = *p,
            RuleAttribute::Protocol(p) => protocol = *p,
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Iifname(name) => interface = Some(name.clone()),
            // Present in every answer, and without a meaning for these.
            RuleAttribute::SuppressPrefixLen(_) | RuleAttribute::Other(_) => {}
            _ => selects = true,
        }
    }
    let local = header.action == RuleAction::ToTable && table == u32::from(TABLE_LOCAL);
    match (priority, interface, protocol == OURS) {
        (0, None, false) if local && !selects => Some(Rule::First),
        (1, None, true) if local => Some(Rule::Second),
        (0, Some(name), true) if header.action == RuleAction::Blackhole => Some(Rule::Blackhole(name)),
        _ => None,
    }
}

fn message(family: AddressFamily, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    let attributes = match rule {
        Rule::First | Rule::Second => {
            message.header.action = RuleAction::ToTable;
            message.header.table = TABLE_LOCAL;
            let (priority, protocol) = match rule {
                Rule::First => (0, RouteProtocol::Kernel),
                _ => (1, OURS),
            };
            vec![
                RuleAttribute::Priority(priority),
                RuleAttribute::Table(u32::from(TABLE_LOCAL)),
                RuleAttribute::Protocol(protocol),
            ]
        }
        Rule::Blackhole(name) => {
            message.header.action = RuleAction::Blackhole;
            vec![
                RuleAttribute::Priority(0),
                RuleAttribute::Iifname(name.clone()),
                RuleAttribute::Protocol(OURS),
            ]
        }
    };
    message.attributes = attributes;
    message
}

fn run(
    netlink: &mut Netlink,
    family: AddressFamily,
    steps: Vec<Step>,
    doing: &Doing<'_>,
) -> Result<(), LinkError> {
    for step in steps {
        match &step {
            Step::Add(rule) => {
                let request = RouteNetlinkMessage::NewRule(message(family, rule));
                let added = netlink.change(request, NLM_F_CREATE | NLM_F_EXCL);
                done_already(added, &[Errno::EEXIST])
                    .map_err(doing.failed("add a policy rule", format!(" ({rule:?})")))?;
            }
            Step::Remove(rule) => {
                let mut request = message(family, rule);
                if *rule == Rule::First {
                    // Whoever put it there.
                    request
                        .attributes
                        .retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
                }
                let removed = netlink.change(RouteNetlinkMessage::DelRule(request), 0);
                done_already(removed, &[Errno::ENOENT])
                    .map_err(doing.failed("remove a policy rule", format!(" ({rule:?})")))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(rules: &mut Vec<Rule>, step: &Step) {
        match step {
            Step::Add(rule) => rules.push(rule.clone()),
            Step::Remove(rule) => rules.retain(|there| there != rule),
        }
    }

    fn has_local(rules: &[Rule]) -> bool {
        rules.contains(&Rule::First) || rules.contains(&Rule::Second)
    }

    /// Every way to be interrupted, and then to go on in either direction.
    #[test]
    fn from_anywhere_to_either_end() {
        let names = ["eth0", "eth1"];
        let awake = vec![Rule::First];
        let mut hushed = vec![Rule::Second];
        hushed.extend(names.map(|name| Rule::Blackhole(name.to_owned())));
        let mut seen = vec![awake.clone(), hushed.clone()];
        let mut at = 0;
        while let Some(from) = seen.get(at).cloned() {
            at += 1;
            for (steps, end) in [
                (steps_to_begin(&from, &names), &hushed),
                (steps_to_end(&from), &awake),
            ] {
                let mut rules = from.clone();
                for step in &steps {
                    act(&mut rules, step);
                    assert!(has_local(&rules), "{from:?} {steps:?}");
                    if !seen.contains(&rules) {
                        seen.push(rules.clone());
                    }
                }
                assert!(
                    rules.len() == end.len() && end.iter().all(|rule| rules.contains(rule)),
                    "{rules:?}"
                );
            }
        }
        assert!(seen.len() > 10);
    }
}

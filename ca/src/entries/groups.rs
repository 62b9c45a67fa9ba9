//! Which agents are in which groups, and since when: told of each change of an agent or of a group, it looks only at those that the
//! change can concern.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use hoplite_identity::{NodeGroup, Selector, SpiffeId, node_name};
use hoplite_store::Revision;

use crate::entries::share::Share;

/// Leavings remembered of one agent, for when it was away; who left more groups meanwhile gets everything anew.
const LEAVINGS_MAX: usize = 64;

/// All groups that ever had an entry, and the agents that are or could be in them.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: HashMap<NodeGroup, Group>,
    /// Each group by one of its selectors: whoever lacks that one is not in it.
    anchored: HashMap<Selector, BTreeSet<NodeGroup>>,
    agents: HashMap<SpiffeId, Member>,
    /// Who has a selector.
    holders: HashMap<Selector, BTreeSet<SpiffeId>>,
}

/// One group. Kept when its last entry goes: its members must still learn that it went.
#[derive(Debug, Default)]
struct Group {
    share: Share,
    members: BTreeSet<SpiffeId>,
}

/// One agent that has joined and is not banned, or that was.
#[derive(Debug, Default)]
struct Member {
    /// All that is attested of its node, its name among it. Empty for one that is no longer let in.
    selectors: BTreeSet<Selector>,
    /// The groups it is in, and since when.
    within: BTreeMap<NodeGroup, Revision>,
    /// The groups it has left, and when, in that order.
    left: VecDeque<(Revision, NodeGroup)>,
    /// Leavings up to here have been forgotten.
    horizon: Revision,
    /// When it last came into a group, or left one.
    changed: Revision,
}

// === impl Groups ===

impl Groups {
    /// What is attested of an agent's node from now on; `None` for one that is not let in any more.
    pub(crate) fn attest(&mut self, agent: &SpiffeId, attested: Option<&[Selector]>, at: Revision) {
        let attested = attested.map(|attested| attested.iter().cloned().chain(node_name(agent)));
        let selectors: BTreeSet<Selector> = attested.into_iter().flatten().collect();
        let before = self.agents.get(agent).map(|member| &member.selectors);
        if before.map_or(selectors.is_empty(), |before| *before == selectors) {
            return; // most writes are renewals
        }
        let member = self.agents.entry(agent.clone()).or_default();
        for selector in member.selectors.difference(&selectors) {
            if let Some(holders) = self.holders.get_mut(selector) {
                holders.remove(agent);
                if holders.is_empty() {
                    self.holders.remove(selector);
                }
            }
        }
        for selector in selectors.difference(&member.selectors) {
            self.holders.entry(selector.clone()).or_default().insert(agent.clone());
        }
        let anchored = selectors.iter().filter_map(|selector| self.anchored.get(selector));
        let now: BTreeSet<&NodeGroup> = anchored.flatten().filter(|group| group.is_subset(&selectors)).collect();
        let left: Vec<NodeGroup> = (member.within.keys())
            .filter(|group| !now.contains(group))
            .cloned()
            .collect();
        for group in now {
            if member.within.contains_key(group) {
                continue;
            }
            member.enter(group, at);
            if let Some(group) = self.groups.get_mut(group) {
                group.members.insert(agent.clone());
            }
        }
        for group in left {
            member.leave(&group, at);
            if let Some(group) = self.groups.get_mut(&group) {
                group.members.remove(agent);
            }
        }
        member.selectors = selectors;
    }

    /// What is registered for a group. One that is new finds its members.
    pub(crate) fn share(&mut self, group: &NodeGroup, at: Revision) -> &mut Share {
        if !self.groups.contains_key(group) {
            self.found(group, at);
        }
        &mut self.groups.entry(group.clone()).or_default().share
    }

    fn found(&mut self, group: &NodeGroup, at: Revision) {
        let has = |selector: &&Selector| self.holders.get(*selector).map_or(0, BTreeSet::len);
        // Few have it, so few are looked at.
        let rarest = group.iter().min_by_key(has);
        let mut members = BTreeSet::new();
        for agent in rarest
            .and_then(|selector| self.holders.get(selector))
            .into_iter()
            .flatten()
        {
            if let Some(member) = self.agents.get_mut(agent)
                && group.is_subset(&member.selectors)
            {
                member.enter(group, at);
                members.insert(agent.clone());
            }
        }
        if let Some(anchor) = group.first() {
            self.anchored.entry(anchor.clone()).or_default().insert(group.clone());
        }
        let founded = Group {
            members,
            ..Group::default()
        };
        self.groups.insert(group.clone(), founded);
    }

    /// Who is in a group.
    pub(crate) fn members(&self, group: &NodeGroup) -> impl Iterator<Item = &SpiffeId> {
        self.groups.get(group).into_iter().flat_map(|group| &group.members)
    }

    /// Whether an agent is in a group that has, or had, an entry.
    pub(crate) fn is_in(&self, agent: &SpiffeId, group: &NodeGroup) -> bool {
        self.agents
            .get(agent)
            .is_some_and(|member| member.within.contains_key(group))
    }

    /// What is registered for the groups that an agent is in, and since when it is in each.
    pub(crate) fn shares(&self, agent: &SpiffeId) -> impl Iterator<Item = (&Share, Revision)> {
        let within = self.agents.get(agent).into_iter().flat_map(|member| &member.within);
        within.filter_map(|(group, since)| Some((&self.groups.get(group)?.share, *since)))
    }

    /// What is registered for the groups that an agent left after `from`.
    pub(crate) fn left(&self, agent: &SpiffeId, from: Revision) -> impl Iterator<Item = &Share> {
        let member = self.agents.get(agent).into_iter();
        let later = member.flat_map(move |member| {
            let since = member.left.partition_point(|(revision, _)| *revision <= from);
            member.left.range(since..)
        });
        later.filter_map(|(_, group)| Some(&self.groups.get(group)?.share))
    }

    /// Whether an agent came into a group or left one after `from`.
    pub(crate) fn has_moved(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.agents.get(agent).is_some_and(|member| member.changed > from)
    }

    /// Whether all groups that an agent left after `from` are known.
    pub(crate) fn remembers(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.agents.get(agent).is_none_or(|member| from >= member.horizon)
    }
}

// === impl Member ===

impl Member {
    fn enter(&mut self, group: &NodeGroup, at: Revision) {
        self.within.insert(group.clone(), at);
        self.changed = self.changed.max(at);
    }

    fn leave(&mut self, group: &NodeGroup, at: Revision) {
        self.within.remove(group);
        self.changed = self.changed.max(at);
        self.left.push_back((at, group.clone()));
        if self.left.len() > LEAVINGS_MAX
            && let Some((revision, _)) = self.left.pop_front()
        {
            self.horizon = self.horizon.max(revision);
        }
    }
}

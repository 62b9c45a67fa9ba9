//! What the proxy says of itself to its agent, for those who run the mesh.

use hoplite_decision::reporting::{describe, program};
use hoplite_host::clock;
use hoplite_wire::report::{Listener, Listeners, Point, PointAbout};

use crate::admin::Admin;
use crate::listening::Shown;
use crate::port::Kind;

impl Admin {
    /// All that is told: which program it is, where it listens, what it enforces, what it has counted.
    pub(crate) fn report(&self) -> Point {
        let identity = self.identity.get().map(|feed| feed.current());
        let mut point = describe(&self.point, clock::now());
        if let Some(counters) = &mut point.counters {
            counters.records_lost = self.records_lost;
            counters.connections = self.metrics.connections();
        }
        let about = PointAbout {
            kind: "proxy".to_owned(),
            name: self.name.clone(),
            spiffe_id: identity
                .map(|identity| identity.svid.spiffe_id().to_string())
                .unwrap_or_default(),
            program: Some(program(self.started)),
        };
        let shown = self.listeners.borrow().clone();
        let listeners = shown.into_iter().map(|Shown { kind, address }| match kind {
            Kind::Inbound(inbound, forward) => Listener {
                kind: "inbound".to_owned(),
                name: inbound.service.to_string(),
                address: address.to_string(),
                to: forward.current().address.clone(),
                expect: String::new(),
            },
            Kind::Outbound(outbound, destination) => {
                let destination = destination.current();
                Listener {
                    kind: "outbound".to_owned(),
                    name: outbound.name.to_string(),
                    address: address.to_string(),
                    to: destination.address.clone(),
                    expect: destination.expect.to_string(),
                }
            }
        });
        Point {
            about: Some(about),
            listeners: Some(Listeners {
                listeners: listeners.collect(),
                left_out: 0,
            }),
            ..point
        }
    }
}

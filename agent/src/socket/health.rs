//! Whether the agent can hand out identities now, for gRPC's health protocol on its socket.

use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use hoplite_wire::health::Readiness;

use crate::supply::SupplyReceiver;

/// How often it is looked whether that has changed, for those who watch.
const LOOK: Duration = Duration::from_secs(1);

/// The agent is ready once it has heard from its CA; what it has then, it goes on giving without the CA, until the CA dismisses it.
#[derive(Debug, Clone)]
pub(crate) struct SupplyReadiness {
    pub(crate) supply: SupplyReceiver,
    pub(crate) shutdown: Shutdown,
}

impl Readiness for SupplyReadiness {
    fn is_ready(&mut self) -> bool {
        !self.shutdown.is_stopping() && {
            let supply = self.supply.borrow_and_update();
            supply.as_ref().is_some_and(|supply| supply.dismissed().is_none())
        }
    }

    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.supply.changed() => changed.is_ok(),
            // Of a dismissal nobody is told who waits for a first word.
            () = tokio::time::sleep(LOOK) => true,
            () = self.shutdown.wait() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorProto;
    use tonic::Code;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::HealthCheckResponse;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    use crate::socket::admission::STREAMS_PER_PROCESS_MAX;
    use crate::supply::shelf::Restock;
    use crate::testing::{World, own};

    fn about(service: &str) -> HealthCheckRequest {
        HealthCheckRequest {
            service: service.to_owned(),
        }
    }

    #[tokio::test]
    async fn it_serves_once_it_has_heard_from_its_ca() {
        let world = World::start();
        let mut client = HealthClient::new(world.dial().await);
        let mut whole = client.watch(about("")).await.unwrap().into_inner();
        let mut unknown = client.watch(about("nobody")).await.unwrap().into_inner();
        let next = async |stream: &mut tonic::Streaming<HealthCheckResponse>| {
            stream.message().await.unwrap().unwrap().status()
        };
        assert_eq!(next(&mut whole).await, ServingStatus::NotServing);
        assert_eq!(next(&mut unknown).await, ServingStatus::ServiceUnknown);
        world.publish([world.entry("/web", &[own()])]);
        assert_eq!(next(&mut whole).await, ServingStatus::Serving);

        for service in [
            "",
            "SpiffeWorkloadAPI",
            "envoy.service.secret.v3.SecretDiscoveryService",
        ] {
            let answer = client.check(about(service)).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
        }
        let refused = client.check(about("nobody")).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);

        // A node that the CA has banned gives nobody anything, and does not say that it could.
        let dismissed = |why: Option<&str>| Restock {
            dismissed: why.map(Into::into),
            ..Restock::default()
        };
        let supply = world.supply.borrow().clone().unwrap();
        supply.put(dismissed(Some("it is banned")));
        assert_eq!(next(&mut whole).await, ServingStatus::NotServing);
        supply.put(dismissed(None));
        assert_eq!(next(&mut whole).await, ServingStatus::Serving);

        world.stopper.stop();
        assert_eq!(next(&mut whole).await, ServingStatus::NotServing);
    }

    #[tokio::test]
    async fn its_streams_count_like_all_others() {
        let world = World::start();
        let mut client = HealthClient::new(world.dial().await);
        let mut open = Vec::new();
        for _ in 0..STREAMS_PER_PROCESS_MAX - 1 {
            open.push(client.watch(about("")).await.unwrap());
        }
        let mut other = HealthClient::new(world.dial().await);
        open.push(other.watch(about("")).await.unwrap());
        let refused = HealthClient::new(world.dial().await)
            .watch(about(""))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    }

    async fn ask(world: &World, question: MessageRequest) -> ServerReflectionResponse {
        let mut client = ServerReflectionClient::new(world.dial().await);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let answers = client.server_reflection_info(tokio_stream::once(request)).await;
        answers.unwrap().into_inner().message().await.unwrap().unwrap()
    }

    /// W-2: server reflection.
    #[tokio::test]
    async fn w_2_reflection_tells_what_is_served() {
        let world = World::start();
        let answer = ask(&world, MessageRequest::ListServices(String::new())).await;
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list: {answer:?}");
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        for name in [
            "SpiffeWorkloadAPI",
            "envoy.service.secret.v3.SecretDiscoveryService",
            "hoplite.policy.v1.Policies",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
        ] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("hoplite.ca")), "{names:?}");

        let symbol = MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI.FetchX509SVID".to_owned());
        let answer = ask(&world, symbol).await;
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
            panic!("no file: {answer:?}");
        };
        let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
        assert_eq!(file.name(), "workload.proto");
    }
}

import com.google.gson.GsonBuilder;
import io.grpc.CallOptions;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.spiffe.bundle.x509bundle.X509Bundle;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.DefaultX509Source.X509SourceOptions;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.URI;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;

/**
 * java-spiffe, and the grpc-java that it brings, as judges of our sockets. Prints one JSON line for each thing that it got.
 *
 * <pre>
 *   Judge watch SOCKET COUNT                   the workload's SVIDs, COUNT of them
 *   Judge call  SOCKET PROTOCOL EXPECT METHOD URL    one HTTPS call with this SVID; PROTOCOL is TLSv1.3, or default
 *   Judge jwt   SOCKET AUDIENCE                the workload's JWT-SVID by a source, how long the source took, and what validates it
 *   Judge rpc   PATH METHOD [AUTHORITY …]      one RPC on a Unix socket for the authority grpc-java chooses, and for each given
 * </pre>
 *
 * Ends with 0, with 3 if the Workload API refused, and with 1 if something else failed.
 */
public final class Judge {
    public static void main(String[] arguments) {
        int code = 0;
        try {
            String[] rest = Arrays.copyOfRange(arguments, 1, arguments.length);
            switch (arguments[0]) {
                case "watch" -> code = watch(rest[0], Integer.parseInt(rest[1]));
                case "call" -> call(rest[0], rest[1], rest[2], rest[3], rest[4]);
                case "jwt" -> jwt(rest[0], rest[1]);
                case "rpc" -> rpc(rest[0], rest[1], Arrays.asList(rest).subList(2, rest.length));
                default -> throw new IllegalArgumentException("unknown command `" + arguments[0] + "`");
            }
        } catch (Throwable error) {
            error.printStackTrace();
            code = 1;
        }
        // Its threads are no daemons.
        System.exit(code);
    }

    private static int watch(String socket, int count) throws Exception {
        CountDownLatch left = new CountDownLatch(count);
        List<Throwable> refused = new ArrayList<>();
        var options = DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath(socket).build();
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient(options)) {
            // A plain fetch is not repeated by the library, so it shows a refusal; a watch would go on trying.
            try {
                client.fetchX509Context();
            } catch (Exception error) {
                line("error", deepest(error).getMessage());
                return 3;
            }
            client.watchX509Context(new Watcher<X509Context>() {
                @Override
                public void onUpdate(X509Context update) {
                    var svid = update.getDefaultSvid();
                    X509Bundle bundle;
                    try {
                        bundle = update.getX509BundleSet().getBundleForTrustDomain(svid.getSpiffeId().getTrustDomain());
                    } catch (Exception error) {
                        onError(error);
                        return;
                    }
                    line(
                            "spiffe_id", svid.getSpiffeId().toString(),
                            "serial", svid.getLeaf().getSerialNumber().toString(16),
                            "authorities", bundle.getX509Authorities().size());
                    left.countDown();
                }

                @Override
                public void onError(Throwable error) {
                    refused.add(error);
                    while (left.getCount() > 0) {
                        left.countDown();
                    }
                }
            });
            if (!left.await(60, TimeUnit.SECONDS)) {
                throw new IllegalStateException("too few updates in 60 s");
            }
        }
        if (!refused.isEmpty()) {
            throw new IllegalStateException(refused.get(0));
        }
        return 0;
    }

    private static void call(String socket, String protocol, String expect, String method, String url) throws Exception {
        var options = X509SourceOptions.builder().spiffeSocketPath(socket).initTimeout(Duration.ofSeconds(30)).build();
        try (var source = DefaultX509Source.newSource(options)) {
            var builder = SslContextOptions.builder()
                    .x509Source(source)
                    .acceptedSpiffeIdsSupplier(() -> Set.of(SpiffeId.parse(expect)));
            if (!protocol.equals("default")) {
                builder.sslProtocol(protocol);
            }
            SSLContext context = SpiffeSslContextFactory.getSslContext(builder.build());
            HttpsURLConnection connection = (HttpsURLConnection) new URI(url).toURL().openConnection();
            connection.setSSLSocketFactory(context.getSocketFactory());
            // A SPIFFE peer is known by its id, which the trust manager has checked, and not by a host's name.
            connection.setHostnameVerifier((host, session) -> true);
            connection.setRequestMethod(method);
            connection.setConnectTimeout(10_000);
            connection.setReadTimeout(10_000);
            int status = connection.getResponseCode();
            X509Certificate peer = (X509Certificate) connection.getServerCertificates()[0];
            line(
                    "status", status,
                    "peer", peer.getSubjectAlternativeNames().iterator().next().get(1),
                    "tls", connection.getSSLSession().orElseThrow().getProtocol());
        }
    }

    private static void jwt(String socket, String audience) throws Exception {
        long began = System.nanoTime();
        var options = JwtSourceOptions.builder().spiffeSocketPath(socket).initTimeout(Duration.ofSeconds(30)).build();
        try (var source = DefaultJwtSource.newSource(options)) {
            long took = (System.nanoTime() - began) / 1_000_000;
            JwtSvid svid = source.fetchJwtSvid(audience);
            // By the library with the bundles of the source, and by the agent.
            JwtSvid own = JwtSvid.parseAndValidate(svid.getToken(), source, Set.of(audience));
            var clientOptions = DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath(socket).build();
            try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient(clientOptions)) {
                JwtSvid agents = client.validateJwtSvid(svid.getToken(), audience);
                String other = "OK";
                try {
                    client.validateJwtSvid(svid.getToken(), "somebody-else");
                } catch (Exception error) {
                    other = String.valueOf(deepest(error).getMessage());
                }
                line(
                        "spiffe_id", own.getSpiffeId().toString(),
                        "agents", agents.getSpiffeId().toString(),
                        "audience", List.copyOf(own.getAudience()),
                        "other", other,
                        "source_ms", took);
            }
        }
    }

    private static void rpc(String path, String method, List<String> authorities) throws Exception {
        var group = new EpollEventLoopGroup(1);
        List<String> all = new ArrayList<>();
        all.add(null);
        all.addAll(authorities);
        for (String authority : all) {
            var builder = NettyChannelBuilder.forAddress(new DomainSocketAddress(path))
                    .eventLoopGroup(group)
                    .channelType(EpollDomainSocketChannel.class)
                    .usePlaintext();
            if (authority != null) {
                builder.overrideAuthority(authority);
            }
            ManagedChannel channel = builder.build();
            String code = "OK";
            String detail = "";
            try {
                // Twice on one connection: the second names the authority by the table of the first.
                for (int i = 0; i < 2; i++) {
                    ask(channel, method);
                }
            } catch (StatusRuntimeException error) {
                code = error.getStatus().getCode().name();
                detail = String.valueOf(error.getStatus().getDescription());
            }
            line("authority", authority, "code", code, "detail", detail);
            channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
        }
    }

    /** Sends an empty message and takes the first that comes back. */
    private static void ask(ManagedChannel channel, String method) {
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("workload.spiffe.io", Metadata.ASCII_STRING_MARSHALLER), "true");
        boolean stream = method.contains("/Fetch");
        var descriptor = MethodDescriptor.<byte[], byte[]>newBuilder()
                .setType(stream ? MethodDescriptor.MethodType.SERVER_STREAMING : MethodDescriptor.MethodType.UNARY)
                .setFullMethodName(method)
                .setRequestMarshaller(new Bytes())
                .setResponseMarshaller(new Bytes())
                .build();
        var with = ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers));
        var options = CallOptions.DEFAULT.withDeadlineAfter(10, TimeUnit.SECONDS);
        if (stream) {
            ClientCalls.blockingServerStreamingCall(with, descriptor, options, new byte[0]).next();
        } else {
            ClientCalls.blockingUnaryCall(with, descriptor, options, new byte[0]);
        }
    }

    /** Messages as they are. */
    private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
        @Override
        public InputStream stream(byte[] value) {
            return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    }

    private static Throwable deepest(Throwable error) {
        return error.getCause() == null ? error : deepest(error.getCause());
    }

    private static synchronized void line(Object... pairs) {
        Map<String, Object> fields = new HashMap<>();
        for (int i = 0; i < pairs.length; i += 2) {
            fields.put((String) pairs[i], pairs[i + 1]);
        }
        System.out.println(new GsonBuilder().serializeNulls().create().toJson(fields));
    }
}

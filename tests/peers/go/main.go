// The Go judge: go-spiffe against our sockets. Prints one JSON line for each thing that it got.
//
//	judge watch  SOCKET COUNT               the workload's SVIDs, COUNT of them
//	judge bundle SOCKET                     the X.509 trust bundles
//	judge call   SOCKET EXPECT METHOD URL   one HTTPS call with this SVID
//	judge jwt    SOCKET AUDIENCE            the workload's JWT-SVID by a source, how long the source took, and what validates it
//	judge oidc   CA ISSUER AUDIENCE         the token on stdin, verified by the discovery document of ISSUER, whose web
//	                                        certificate is by the authority in the PEM file CA
//	judge federate web    CA URL DOMAIN          the bundle of DOMAIN by its endpoint, whose web certificate is by CA
//	judge federate spiffe FILE URL DOMAIN ID     the same, by an endpoint that is ID by the bundle in FILE
//	judge publish SOCKET FILE DOMAIN        a bundle endpoint with this SVID that serves the bundle in FILE, read anew at each line
//	                                        of stdin; its first line has the address; ends with stdin
//	judge serve  SOCKET ACCEPT              an HTTPS server with this SVID; its first line has the address; ends with stdin
//
// Ends with 0, with 3 if the Workload API refused, and with 1 if something else failed.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		if status.Code(err) == codes.PermissionDenied {
			line(map[string]any{"error": "PermissionDenied", "detail": status.Convert(err).Message()})
			os.Exit(3)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, rest []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if command == "oidc" {
		return verify(ctx, rest[0], rest[1], rest[2])
	}
	if command == "federate" {
		return federate(ctx, rest)
	}
	address := workloadapi.WithAddr(rest[0])
	// A plain fetch is not repeated by the library, so it shows a refusal; the sources would go on trying.
	if _, err := workloadapi.FetchX509Context(ctx, address); err != nil {
		return err
	}
	switch command {
	case "watch":
		count, err := strconv.Atoi(rest[1])
		if err != nil {
			return err
		}
		watching, done := context.WithCancel(ctx)
		defer done()
		err = workloadapi.WatchX509Context(watching, &watcher{left: count, done: done}, address)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if watching.Err() == nil {
			return err
		}
		return nil
	case "bundle":
		// Its bundle source waits for JWT bundles too.
		set, err := workloadapi.FetchX509Bundles(ctx, address)
		if err != nil {
			return err
		}
		for _, bundle := range set.Bundles() {
			line(map[string]any{"trust_domain": bundle.TrustDomain().Name(), "authorities": len(bundle.X509Authorities())})
		}
		return nil
	case "jwt":
		began := time.Now()
		source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(address))
		if err != nil {
			return err
		}
		defer source.Close()
		took := time.Since(began)
		svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: rest[1]})
		if err != nil {
			return err
		}
		// By the library with the bundles of the source, and by the agent.
		own, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{rest[1]})
		if err != nil {
			return err
		}
		agents, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), rest[1], address)
		if err != nil {
			return err
		}
		_, other := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "somebody-else", address)
		line(map[string]any{
			"spiffe_id": own.ID.String(),
			"agents":    agents.ID.String(),
			"audience":  own.Audience,
			"other":     status.Code(other).String(),
			"source_ms": took.Milliseconds(),
		})
		return nil
	case "call":
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
		if err != nil {
			return err
		}
		defer source.Close()
		expect, err := spiffeid.FromString(rest[1])
		if err != nil {
			return err
		}
		config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(expect))
		client := http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}
		request, err := http.NewRequestWithContext(ctx, rest[2], rest[3], nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return err
		}
		line(map[string]any{
			"status": answer.StatusCode,
			"proto":  answer.Proto,
			"peer":   answer.TLS.PeerCertificates[0].URIs[0].String(),
			"tls":    tls.VersionName(answer.TLS.Version),
		})
		return nil
	case "serve":
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
		if err != nil {
			return err
		}
		defer source.Close()
		accept, err := spiffeid.FromString(rest[1])
		if err != nil {
			return err
		}
		listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(accept)))
		if err != nil {
			return err
		}
		line(map[string]any{"address": listener.Addr().String()})
		go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.TLS.PeerCertificates[0].URIs[0])
		}))
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	if command == "publish" {
		return publish(ctx, address, rest[1], rest[2])
	}
	return fmt.Errorf("unknown command `%s`", command)
}

// A federated server's view of our endpoint.
func federate(ctx context.Context, rest []string) error {
	domain, err := spiffeid.TrustDomainFromString(rest[3])
	if err != nil {
		return err
	}
	var option federation.FetchOption
	if rest[0] == "web" {
		pem, err := os.ReadFile(rest[1])
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in `%s`", rest[1])
		}
		option = federation.WithWebPKIRoots(roots)
	} else {
		known, err := spiffebundle.Load(domain, rest[1])
		if err != nil {
			return err
		}
		id, err := spiffeid.FromString(rest[4])
		if err != nil {
			return err
		}
		option = federation.WithSPIFFEAuth(known, id)
	}
	bundle, err := federation.FetchBundle(ctx, domain, rest[2], option)
	if err != nil {
		return err
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	line(map[string]any{
		"authorities": len(bundle.X509Authorities()),
		"jwt":         len(bundle.JWTAuthorities()),
		"sequence":    sequence,
		"hint":        int(hint.Seconds()),
	})
	return nil
}

// A bundle endpoint of go-spiffe's.
func publish(ctx context.Context, address workloadapi.ClientOption, file, name string) error {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return err
	}
	bundle, err := spiffebundle.Load(domain, file)
	if err != nil {
		return err
	}
	bundles := spiffebundle.NewSet(bundle)
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		return err
	}
	defer source.Close()
	handler, err := federation.NewHandler(domain, bundles)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.TLSServerConfig(source))
	if err != nil {
		return err
	}
	line(map[string]any{"address": listener.Addr().String()})
	go http.Serve(listener, handler)
	anew := bufio.NewScanner(os.Stdin)
	for anew.Scan() {
		bundle, err := spiffebundle.Load(domain, file)
		if err != nil {
			return err
		}
		bundles.Add(bundle)
		line(map[string]any{"read": true})
	}
	return anew.Err()
}

// What Vault does with a token: a stock OpenID Connect library, and the issuer's address.
func verify(ctx context.Context, ca, issuer, audience string) error {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in `%s`", ca)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, Timeout: 10 * time.Second}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return err
	}
	var said struct {
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&said); err != nil {
		return err
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience, SupportedSigningAlgs: said.Algorithms})
	tokens := bufio.NewScanner(os.Stdin)
	for tokens.Scan() {
		token, err := verifier.Verify(ctx, tokens.Text())
		if err != nil {
			line(map[string]any{"refused": err.Error()})
			continue
		}
		line(map[string]any{"subject": token.Subject, "issuer": token.Issuer, "audience": token.Audience})
	}
	return tokens.Err()
}

type watcher struct {
	left int
	done context.CancelFunc
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid := update.DefaultSVID()
	bundle, err := update.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line(map[string]any{
		"spiffe_id":   svid.ID.String(),
		"serial":      svid.Certificates[0].SerialNumber.Text(16),
		"authorities": len(bundle.X509Authorities()),
	})
	if w.left--; w.left <= 0 {
		w.done()
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	if status.Code(err) != codes.Canceled {
		fmt.Fprintln(os.Stderr, err)
	}
}

func line(fields map[string]any) {
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

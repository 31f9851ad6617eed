package bgp

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// causes turns the library's log lines that tell why a session is not there
// into a sentence with the remedy. TestCauses holds their wording.
var causes = map[string]func(p Peer, as uint32, field func(string) slog.Value) string{
	"failed to connect": func(p Peer, _ uint32, field func(string) slog.Value) string {
		return unreachable(p, fmt.Sprint(field("Error").Any()))
	},
	"outgoing connection IO error": func(p Peer, as uint32, _ func(string) slog.Value) string {
		return disowned(p, as)
	},
	"sent notification": func(p Peer, as uint32, field func(string) slog.Value) string {
		return refusal(p, as, uint8(field("Code").Int64()), uint8(field("Subcode").Int64()), true)
	},
	"received notification": func(p Peer, as uint32, field func(string) slog.Value) string {
		return refusal(p, as, uint8(field("Code").Int64()), uint8(field("Subcode").Int64()), false)
	},
	"failed to set md5": func(p Peer, _ uint32, field func(string) slog.Value) string {
		return fmt.Sprintf("set the password of %s: %v; its connections are refused", p.Name(), field("Err").Any())
	},
	"cannot set TTL": func(p Peer, _ uint32, field func(string) slog.Value) string {
		return fmt.Sprintf("set the TTL towards %s: %v", p.Name(), field("Error").Any())
	},
}

// unsigned is the message after which a session would be without its password.
const unsigned = "failed to set md5"

// unreachable explains why the router could not be connected.
func unreachable(p Peer, err string) string {
	at := fmt.Sprintf("connect to %s port %d: ", p.Name(), p.Port)
	switch {
	case strings.Contains(err, "connection refused"):
		return at + "connection refused: the router speaks no BGP there, or does not expect this host; add this host as its neighbour"
	case strings.Contains(err, "timeout") && p.Password != "":
		return at + "no answer: the router is down or filtered, or has another password (BGP drops what is signed wrongly); compare the passwords"
	case strings.Contains(err, "timeout"):
		return at + "no answer: the router is down or filtered, or expects a password; check its neighbour statement for this host"
	case strings.Contains(err, "no route to host"), strings.Contains(err, "network is unreachable"):
		return at + "unreachable: this host has no route to it, or nobody there has the address"
	case strings.Contains(err, "cannot assign requested address"):
		return at + "this host does not have the address " + p.Source.String() + "; correct source="
	}
	return at + err[strings.LastIndex(err, ": ")+len(": "):]
}

// refusal explains a notification, with which either end refuses the other.
func refusal(p Peer, as uint32, code, subcode uint8, sent bool) string {
	said := bgp.NewNotificationErrorCode(code, subcode).String()
	who := p.Name() + " closed the session"
	if sent {
		who = "this host closed the session with " + p.Name()
	}
	is := func(c, s uint8) bool { return code == c && subcode == s }
	switch {
	case is(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_PEER_AS) && sent:
		return fmt.Sprintf("%s: it is not of AS %d; correct as= in BGP_PEERS", who, p.AS)
	case is(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_PEER_AS):
		return fmt.Sprintf("%s: it does not expect AS %d of this host; correct BGP_AS, or its remote-as", who, as)
	case is(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER):
		return who + ": both have the same router id; set BGP_ROUTER_ID to another"
	case is(bgp.BGP_ERROR_CEASE, bgp.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED) && !sent:
		return who + ": this host announces more prefixes than the router allows; raise its maximum-prefix"
	case is(bgp.BGP_ERROR_CEASE, bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET) && sent: // only BFD makes it do so
		return who + ": BFD hears nothing from it; look at the link, and at BFD of the router"
	case code == bgp.BGP_ERROR_CEASE && !sent:
		return fmt.Sprintf("%s: it was shut down or reconfigured there (%s)", who, said)
	case code == bgp.BGP_ERROR_HOLD_TIMER_EXPIRED && sent:
		return who + ": nothing was heard for the hold time; look at the link and at the router"
	case code == bgp.BGP_ERROR_FSM_ERROR && sent:
		return disowned(p, as)
	}
	return fmt.Sprintf("%s: %s", who, said)
}

// disowned explains a router that ends the session before it began.
func disowned(p Peer, as uint32) string {
	return fmt.Sprintf("%s refused the session: it does not expect AS %d from this address; add this host as its neighbour, or correct BGP_AS", p.Name(), as)
}

// lost explains the end of an established session, of which the library tells
// the reason. Empty: another line tells more.
func lost(p Peer, reason api.PeerState_DisconnectReason) string {
	switch reason {
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		return p.Name() + " closed the connection without a word: it restarts, or the link is down"
	case api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED:
		return refusal(p, 0, bgp.BGP_ERROR_HOLD_TIMER_EXPIRED, 0, true)
	}
	return ""
}

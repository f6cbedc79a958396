// Package rpc is how services are called: the server side with its one chain of
// interceptors, the client side, and the ways between them.
//
// It owns the error form (a Connect code plus a parley.error.v1.ErrorInfo), the
// enforcement of the access option of every method, deadlines, draining, the
// balancing client and the in-process transport.
//
// Invariants: a method without the access option is not served; every handler
// runs with a verified identity.Caller in its context, and every unary one with a
// deadline (a stream has the one that its caller names); a
// cause that nobody gave a code never reaches a caller; a call gives the same
// code and reason over HTTP/2, HTTP/1.1 and in process. It sends a request a
// second time only if the first attempt cannot have reached a server.
//
// It knows no domain and never trusts a header to say who is calling.
package rpc

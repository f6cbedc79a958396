package e2e_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/parleychat/parley/test/e2e/system"
)

// full says that all stories are told, not only those of every day.
var full = os.Getenv("PARLEY_E2E_FULL") == "1"

// story is one thing that people do, or that befalls them.
type story struct {
	name string
	tell func(*testing.T, *system.System)
	// shapes are those where the story means something; every day it is told in the
	// first of them, or in all of them if daily says so.
	shapes []system.Shape
	daily  coverage
}

type coverage int

const (
	firstShape coverage = iota // every day in the first of its shapes
	allShapes                  // every day in all of them
	onlyFull                   // never every day
)

var (
	both     = []system.Shape{system.OneProcess, system.Separate}
	one      = []system.Shape{system.OneProcess}
	separate = []system.Shape{system.Separate}
)

// told says in which shapes the story is told today.
func (s story) told() []system.Shape {
	switch {
	case full || s.daily == allShapes:
		return s.shapes
	case s.daily == onlyFull:
		return nil
	default:
		return s.shapes[:1]
	}
}

// calm are the stories in which no process dies. Those of one shape share a
// system, each with people of its own.
var calm = []story{
	{"TwoPeopleTalk", twoPeopleTalk, both, allShapes},
	{"EverybodyTalksAtOnce", everybodyTalksAtOnce, both, allShapes},
	{"LaneKeepsOrder", laneKeepsOrder, both, allShapes},
	{"BothStartAtOnce", bothStartAtOnce, both, allShapes},
	{"SocketsDrop", socketsDrop, both, allShapes},
	{"LastPushIsLost", lastPushIsLost, both, allShapes},
	{"PushesAreLost", pushesAreLost, both, allShapes},
	{"RetryIsRecognised", retryIsRecognised, both, allShapes},
	{"LogOutClosesSockets", logOutClosesSockets, both, allShapes},
	{"LogOutEverywhereClosesSockets", logOutEverywhereClosesSockets, both, allShapes},
	{"SuspensionClosesSockets", suspensionClosesSockets, both, allShapes},
	{"RefreshReuseEndsSession", refreshReuseEndsSession, both, allShapes},
	{"RefreshGraceEnds", refreshGraceEnds, both, onlyFull},
	{"DataIsExported", dataIsExported, both, allShapes},
	{"AccountIsDeleted", accountIsDeleted, both, allShapes},
	{"ACodeComesByMail", aCodeComesByMail, one, allShapes},
	{"PlainHTTP", plainHTTP, both, allShapes},
	{"JSONSocket", jsonSocket, both, allShapes},
	{"GRPC", grpcCalls, both, allShapes},
	{"InternalMethodsAreHidden", internalMethodsAreHidden, both, allShapes},
	{"AMessageIsOneTrace", aMessageIsOneTrace, both, allShapes},
	{"MetricsAreListed", metricsAreListed, one, allShapes},
	{"CheckerSeesLies", checkerSeesLies, one, allShapes},
}

// faults are the stories of what breaks. Each has a system of its own.
var faults = []struct {
	story
	options func() system.Options
}{
	{story{"ThroughPgBouncer", throughPgBouncer, separate, firstShape}, bouncer},
	{story{"MessagingIsKilled", messagingIsKilled, separate, firstShape}, defaults},
	{story{"GatewayIsKilled", gatewayIsKilled, separate, firstShape}, shortIdle},
	{story{"AllInOneIsKilled", allInOneIsKilled, one, firstShape}, shortIdle},
	{story{"OutsiderComesToTheBus", outsiderComesToTheBus, one, firstShape}, defaults},
	{story{"BusRestarts", busRestarts, separate, firstShape}, defaults},
	{story{"GatewayLosesBus", gatewayLosesBus, separate, firstShape}, defaults},
	{story{"SecondStartAfterMidnight", secondStartAfterMidnight, both, firstShape}, beforeMidnight},
	{story{"MessagingHangs", messagingHangs, separate, onlyFull}, shortIdle},
	{story{"DatabaseIsKilled", databaseIsKilled, separate, onlyFull}, shortIdle},
	{story{"RollingRestart", rollingRestart, separate, onlyFull}, shortIdle},
	{story{"OthersAreKilled", othersAreKilled, separate, onlyFull}, shortIdle},
}

func defaults() system.Options { return system.Options{} }

// bouncer has the services share a few connections to the database.
func bouncer() system.Options { return system.Options{PgBouncer: true} }

// shortIdle lets clients repair what nobody tells them within two seconds instead
// of two minutes.
func shortIdle() system.Options { return system.Options{IdleInterval: idle} }

const idle = 2 * time.Second

//nolint:paralleltest,tparallel // beside TestFaults there would be four systems at once, and late looks like broken
func TestCalm(t *testing.T) {
	for _, shape := range both {
		t.Run(shape.String(), func(t *testing.T) {
			t.Parallel()
			sys := system.Start(t, shape, defaults())
			for _, s := range calm {
				if slices.Contains(s.told(), shape) {
					t.Run(s.name, func(t *testing.T) {
						t.Parallel()
						s.tell(t, sys)
					})
				}
			}
		})
	}
}

//nolint:paralleltest,tparallel // see TestCalm
func TestFaults(t *testing.T) {
	for _, s := range faults {
		for _, shape := range s.told() {
			t.Run(s.name+"/"+shape.String(), func(t *testing.T) {
				t.Parallel()
				s.tell(t, system.Start(t, shape, s.options()))
			})
		}
	}
}

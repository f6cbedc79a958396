package auth_test

import (
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/pquerna/otp/totp"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
)

// app is an authenticator app.
type app struct {
	secret string
	h      *servicetest.Harness
}

// code is what it shows now; a step later it is another.
func (a app) code(t *testing.T) string {
	t.Helper()
	code, err := totp.GenerateCode(a.secret, a.h.Clock.Now())
	require.NoError(t, err)
	return code
}

// next moves the clock to the next code.
func (a app) next(t *testing.T) string {
	t.Helper()
	a.h.Clock.Advance(30 * time.Second)
	return a.code(t)
}

// enrol turns a person's second factor on and returns their app and recovery codes.
func enrol(t *testing.T, h *servicetest.Harness, p *someone) (app, []string) {
	t.Helper()
	enrolled, err := p.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{Password: password})
	require.NoError(t, err)
	a := app{enrolled.GetSecret(), h}
	res, err := p.factor.ConfirmSecondFactor(t.Context(), &authv1.ConfirmSecondFactorRequest{Code: a.code(t)})
	require.NoError(t, err)
	require.Len(t, res.GetRecoveryCodes(), 10)
	return a, res.GetRecoveryCodes()
}

// challenged logs in by password and returns the challenge.
func challenged(t *testing.T, client authv1connect.AuthServiceClient, login string) string {
	t.Helper()
	_, err := logIn(t.Context(), client, login, password)
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_REQUIRED)
	challenge := rpc.InfoOf(err).GetMetadata()["challenge"]
	require.NotEmpty(t, challenge)
	return challenge
}

func wrongFactor(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_SECOND_FACTOR_INVALID)
}

func invalidChallenge(t *testing.T, err error) {
	t.Helper()
	requireReason(t, err, connect.CodeUnauthenticated, errorv1.Reason_REASON_CHALLENGE_INVALID)
}

func TestSecondFactor(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	factor := authv1connect.NewSecondFactorServiceClient(h.Dial("auth", h.Anonymous()))
	complete := func(t *testing.T, challenge, code string) (*authv1.CompleteLogInResponse, error) {
		t.Helper()
		return factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenge, Code: code})
	}

	anna := newcomer(t, h, client, "anna")
	mailedCode(t, h, "anna@example.org")
	enrolled, err := anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{Password: password})
	require.NoError(t, err)
	uri, err := url.Parse(enrolled.GetUri())
	require.NoError(t, err)
	require.Equal(t, "otpauth", uri.Scheme)
	require.Equal(t, "/Parley:anna", uri.Path)
	require.Equal(t, enrolled.GetSecret(), uri.Query().Get("secret"))
	phone := app{enrolled.GetSecret(), h}

	// Until it is confirmed nothing is asked for it, and the secret is not in the database.
	_, err = logIn(t.Context(), client, "anna", password)
	require.NoError(t, err)
	_, err = anna.factor.ConfirmSecondFactor(t.Context(), &authv1.ConfirmSecondFactorRequest{Code: wrongCode(phone.code(t))})
	wrongFactor(t, err)
	res, err := anna.factor.ConfirmSecondFactor(t.Context(), &authv1.ConfirmSecondFactorRequest{Code: phone.code(t)})
	require.NoError(t, err)
	require.Len(t, res.GetRecoveryCodes(), 10)
	require.Contains(t, h.Mail.Next("anna@example.org").Subject, "second factor")
	_, err = anna.factor.EnrolSecondFactor(t.Context(), &authv1.EnrolSecondFactorRequest{Password: password})
	requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_ON)
	var row string
	require.NoError(t, h.DB("auth").QueryRow(t.Context(), "SELECT second_factor::text || (SELECT string_agg(recovery_code::text, ' ') FROM recovery_code) FROM second_factor").Scan(&row))
	require.NotContains(t, row, phone.secret)
	require.NotContains(t, row, res.GetRecoveryCodes()[0])

	// A log-in is asked for a code; the one of the confirmation is spent.
	challenge := challenged(t, client, "anna")
	_, err = complete(t, challenge, phone.code(t))
	wrongFactor(t, err)
	code := phone.next(t)
	in, err := complete(t, challenge, code[:3]+" "+code[3:])
	require.NoError(t, err)
	require.Equal(t, anna.id, in.GetUserId())
	_, err = verifier(h).Verify(t.Context(), in.GetTokens().GetAccessToken())
	require.NoError(t, err)
	// Neither the challenge nor the code is good again.
	_, err = complete(t, challenge, phone.next(t))
	invalidChallenge(t, err)
	_, err = complete(t, challenged(t, client, "anna"), code)
	wrongFactor(t, err)
	// A recovery code is good once, as it is typed.
	in, err = complete(t, challenged(t, client, "anna"), " "+res.GetRecoveryCodes()[3])
	require.NoError(t, err)
	_, err = complete(t, challenged(t, client, "anna"), res.GetRecoveryCodes()[3])
	wrongFactor(t, err)
	now := logged(h, anna.id, in.GetTokens())
	state, err := now.factor.GetSecondFactor(t.Context(), &authv1.GetSecondFactorRequest{})
	require.NoError(t, err)
	require.NotNil(t, state.GetOnSince())
	require.EqualValues(t, 9, state.GetRecoveryCodesLeft())
	now.recorded(t, "session.second_factor_asked", "")
	now.recorded(t, "session.started", "SECOND_FACTOR_INVALID")
	var by []string
	for _, ev := range now.record(t) {
		if ev.GetAction() == "session.started" && ev.GetReason() == "" {
			by = append(by, ev.GetDetails()["by"])
		}
	}
	require.Equal(t, []string{"recovery code", "second factor", "password"}, by, "the newest first")
	told := h.Mail.Next("anna@example.org")
	require.Contains(t, told.Subject, "recovery code")
	require.Contains(t, told.Text, "left: 9")
	now.recorded(t, "second_factor.on", "")
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	h, client := withMail(t, "PARLEY_AUTH_LOGIN_LIMIT=0", "PARLEY_AUTH_LOGIN_ADDRESS_LIMIT=0")
	factor := authv1connect.NewSecondFactorServiceClient(h.Dial("auth", h.Anonymous()))
	complete := func(t *testing.T, challenge, code string) error {
		t.Helper()
		_, err := factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenge, Code: code})
		return err
	}
	people := map[string]app{}
	tokens := map[string]*someone{}
	tokens["emil"] = newcomer(t, h, client, "emil")
	for _, name := range []string{"anna", "berta", "cleo", "doro"} {
		tokens[name] = newcomer(t, h, client, name)
		people[name], _ = enrol(t, h, tokens[name])
	}

	// Five tries.
	tried := challenged(t, client, "anna")
	for range 5 {
		wrongFactor(t, complete(t, tried, wrongCode(people["anna"].code(t))))
	}
	invalidChallenge(t, complete(t, tried, people["anna"].next(t)))
	tokens["anna"].recorded(t, "session.started", "CHALLENGE_INVALID")
	// Another password takes the challenges away.
	changed := challenged(t, client, "berta")
	_, err := changePassword(t, tokens["berta"], password, nextPassword)
	require.NoError(t, err)
	invalidChallenge(t, complete(t, changed, people["berta"].next(t)))
	// Of many at once with one code, one comes in.
	challenges := func(t *testing.T, login string, n int) (all []string) {
		t.Helper()
		for range n {
			all = append(all, challenged(t, client, login))
		}
		return all
	}
	atOnce := func(challenges []string, code string) int {
		var in atomic.Int32
		var group sync.WaitGroup
		for _, challenge := range challenges {
			group.Go(func() {
				_, err := factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenge, Code: code})
				if err == nil {
					in.Add(1)
				}
			})
		}
		group.Wait()
		return int(in.Load())
	}
	require.Equal(t, 1, atOnce(challenges(t, "cleo", 3), people["cleo"].next(t)))
	// A recovery code, too.
	_, recovery := enrol(t, h, tokens["emil"])
	require.Equal(t, 1, atOnce(challenges(t, "emil", 3), recovery[0]))
	// Five minutes.
	late := challenged(t, client, "doro")
	h.Clock.Advance(5 * time.Minute)
	invalidChallenge(t, complete(t, late, people["doro"].code(t)))
	invalidChallenge(t, complete(t, "plc_INVENTED-INVENTED", people["doro"].code(t)))
}

func TestGuessingTheSecondFactorIsLimited(t *testing.T) {
	t.Parallel()
	h, client := start(t)
	factor := authv1connect.NewSecondFactorServiceClient(h.Dial("auth", h.Anonymous()))
	anna := newcomer(t, h, client, "anna")
	phone, _ := enrol(t, h, anna)
	limitedAfterFive(t, wrongFactor, func() error {
		_, err := factor.CompleteLogIn(t.Context(), &authv1.CompleteLogInRequest{Challenge: challenged(t, client, "anna"), Code: wrongCode(phone.code(t))})
		return err
	})
	// Guessing at challenges counts by address.
	limitedAfterFive(t, invalidChallenge, func() error {
		_, err := factor.CompleteLogIn(from(t, "203.0.113.5"), &authv1.CompleteLogInRequest{Challenge: "plc_INVENTED-INVENTED", Code: "123456"})
		return err
	})
}

func TestChangesOfTheSecondFactor(t *testing.T) {
	t.Parallel()
	h, client := withMail(t)
	proof := func(code string) *authv1.SecondFactorProof {
		return &authv1.SecondFactorProof{Password: password, Factor: &authv1.SecondFactorProof_Code{Code: code}}
	}
	mailed := func(code string) *authv1.SecondFactorProof {
		return &authv1.SecondFactorProof{Password: password, Factor: &authv1.SecondFactorProof_MailedCode{MailedCode: code}}
	}
	disable := func(t *testing.T, p *someone, with *authv1.SecondFactorProof) error {
		t.Helper()
		_, err := p.factor.DisableSecondFactor(t.Context(), &authv1.DisableSecondFactorRequest{Proof: with})
		return err
	}
	regenerate := func(t *testing.T, p *someone, with *authv1.SecondFactorProof) ([]string, error) {
		t.Helper()
		res, err := p.factor.RegenerateRecoveryCodes(t.Context(), &authv1.RegenerateRecoveryCodesRequest{Proof: with})
		return res.GetRecoveryCodes(), err
	}
	send := func(t *testing.T, p *someone, action authv1.ConfirmedAction) error {
		t.Helper()
		_, err := p.account.SendActionCode(t.Context(), &authv1.SendActionCodeRequest{Action: action})
		return err
	}
	anna := newcomer(t, h, client, "anna")
	mailedCode(t, h, "anna@example.org")
	off := func(err error) {
		t.Helper()
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_SECOND_FACTOR_OFF)
	}
	off(disable(t, anna, proof("123456")))
	off(send(t, anna, authv1.ConfirmedAction_CONFIRMED_ACTION_DISABLE_SECOND_FACTOR))

	phone, old := enrol(t, h, anna)
	h.Mail.Next("anna@example.org")
	wrongPassword(t, disable(t, anna, &authv1.SecondFactorProof{Password: "not-the-password", Factor: &authv1.SecondFactorProof_Code{Code: old[0]}}))
	wrongFactor(t, disable(t, anna, proof(wrongCode(phone.code(t)))))

	// An address is not changed without the second factor.
	_, err := anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: "a@example.org"})
	wrongFactor(t, err)
	_, err = anna.account.StartEmailChange(t.Context(), &authv1.StartEmailChangeRequest{Password: password, NewEmail: "a@example.org", SecondFactorCode: phone.next(t)})
	require.NoError(t, err)

	// New recovery codes void the old ones; a refused call has spent nothing.
	fresh, err := regenerate(t, anna, proof(old[0]))
	require.NoError(t, err)
	require.Len(t, fresh, 10)
	require.Contains(t, h.Mail.Next("anna@example.org").Subject, "recovery code")
	wrongFactor(t, disable(t, anna, proof(old[1])))

	// A mailed code is good for what it was asked for.
	require.NoError(t, send(t, anna, authv1.ConfirmedAction_CONFIRMED_ACTION_REGENERATE_RECOVERY_CODES))
	code := mailedCode(t, h, "anna@example.org")
	invalidCode(t, disable(t, anna, mailed(code)))
	_, err = regenerate(t, anna, mailed(code))
	require.NoError(t, err)
	require.NoError(t, send(t, anna, authv1.ConfirmedAction_CONFIRMED_ACTION_DISABLE_SECOND_FACTOR))
	require.NoError(t, disable(t, anna, mailed(mailedCode(t, h, "anna@example.org"))))
	require.Contains(t, h.Mail.Next("anna@example.org").Subject, "is off")
	again(t, h, client, "anna", password)
	anna.recorded(t, "second_factor.off", "")
	anna.recorded(t, "second_factor.recovery_codes_renewed", "")
	anna.recorded(t, "second_factor.off", "SECOND_FACTOR_INVALID")
}

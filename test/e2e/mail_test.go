package e2e_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	"github.com/parleychat/parley/test/e2e/system"
)

var mailedCode = regexp.MustCompile(`\b[0-9]{8}\b`)

// aCodeComesByMail: a registration queues a mail, which is delivered, stands in the
// mailbox of `parley dev`, and has the code that verifies the address.
func aCodeComesByMail(t *testing.T, sys *system.System) {
	ada := register(t, sys, 0)
	address := ada.username + "@example.org"
	var code string
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, sys.Process("parley").Admin()+"/mails/json?to="+address, http.NoBody)
		require.NoError(c, err)
		res, err := web.Do(req)
		require.NoError(c, err)
		defer func() { _ = res.Body.Close() }()
		var box struct {
			Mails []struct {
				Text string `json:"text"`
			} `json:"mails"`
		}
		require.NoError(c, json.NewDecoder(res.Body).Decode(&box))
		require.Len(c, box.Mails, 1)
		code = mailedCode.FindString(box.Mails[0].Text)
		require.NotEmpty(c, code)
	}, soon, poll, "the mail arrives")
	account := authv1connect.NewAccountServiceClient(web, base(sys, 0), ada.bearer())
	_, err := account.VerifyEmail(t.Context(), &authv1.VerifyEmailRequest{Code: code})
	require.NoError(t, err)
	own, err := account.GetOwnAccount(t.Context(), &authv1.GetOwnAccountRequest{})
	require.NoError(t, err)
	require.NotNil(t, own.GetEmailVerifiedAt())
}

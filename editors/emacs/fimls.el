;;; fimls.el --- Ghost text from fimls in Eglot's buffers  -*- lexical-binding: t -*-

;; SPDX-License-Identifier: Apache-2.0
;; Version: 0.1
;; Package-Requires: ((emacs "30.1"))
;; Keywords: convenience, languages

;;; Commentary:

;; Eglot shows menus only.  This adds what it lacks: `fimls-complete' asks for a suggestion here, `fimls-mode' asks
;; wherever typing pauses, and the suggestion stands as ghost text behind the cursor until TAB takes it.
;;
;;   (require 'fimls)
;;   (add-to-list 'eglot-server-programs '((python-mode python-ts-mode) . (fimls-server "fimls" "lsp")))
;;   (add-hook 'eglot-managed-mode-hook #'fimls-mode)

;;; Code:

(require 'eglot)

(defgroup fimls nil "Code completion that stays on this machine." :group 'eglot)

(defcustom fimls-delay 0.2 "How many seconds typing pauses before `fimls-mode' asks." :type 'number)

(defface fimls-ghost '((t :inherit shadow)) "How a suggestion looks that is not accepted.")

(defclass fimls-server (eglot-lsp-server) ()
  :documentation "A server whose client draws inline completions: fimls then keeps out of the menu.")

(cl-defmethod eglot-client-capabilities ((_ fimls-server))
  (let ((capabilities (cl-call-next-method)))
    (plist-put (plist-get capabilities :textDocument) :inlineCompletion '(:dynamicRegistration :json-false))
    capabilities))

(defvar-keymap fimls-active-map
  :doc "The keys while a suggestion is shown.  Any other key takes it away."
  "TAB" #'fimls-accept
  "<tab>" #'fimls-accept
  "M-n" #'fimls-next
  "C-g" #'fimls-dismiss)

(defvar fimls--overlay nil "The ghost text; there is one at most.")
(defvar fimls--items nil "The alternatives of which one is shown, that one first.")
(defvar fimls--exit nil "Ends the keys of `fimls-active-map'.")
(defvar fimls--timer nil)

(defun fimls--send (kind)
  "The arguments of a request at point; KIND is 1 for invoked, 2 for automatic."
  (eglot--signal-textDocument/didChange)
  (list (eglot--current-server-or-lose) :textDocument/inlineCompletion
        (append (eglot--TextDocumentPositionParams) `(:context (:triggerKind ,kind)))))

(defun fimls-complete ()
  "Ask for a suggestion at point and show it."
  (interactive)
  (let ((result (apply #'jsonrpc-request (append (fimls--send 1) '(:timeout 60 :cancel-on-input t)))))
    (unless (fimls--show (append (plist-get result :items) nil))
      (message "fimls has no suggestion here"))))

(defun fimls--ask (buffer tick)
  "Ask by itself, if BUFFER is still at TICK."
  (let ((is-current (lambda () (and (eq buffer (window-buffer)) (not completion-in-region-mode)
                                    (= tick (buffer-chars-modified-tick buffer))))))
    (when (and (funcall is-current) (eglot-managed-p))
      (let* ((place (point))
             (show (lambda (result)
                     (with-current-buffer (window-buffer)
                       (when (and (funcall is-current) (= place (point)))
                         (fimls--show (append (plist-get result :items) nil)))))))
        (apply #'jsonrpc-async-request
               (append (fimls--send 2) (list :success-fn show :error-fn #'ignore :timeout-fn #'ignore)))))))

(defun fimls--ask-soon ()
  (when fimls--timer (cancel-timer fimls--timer))
  (setq fimls--timer (run-with-idle-timer fimls-delay nil #'fimls--ask
                                          (current-buffer) (buffer-chars-modified-tick))))

;;;###autoload
(define-minor-mode fimls-mode
  "Show suggestions wherever typing pauses, if the buffer's server has them."
  :lighter nil
  (if (and fimls-mode (eglot-managed-p) (eglot-server-capable :inlineCompletionProvider))
      (add-hook 'post-self-insert-hook #'fimls--ask-soon nil t)
    (remove-hook 'post-self-insert-hook #'fimls--ask-soon t)))

(defun fimls--region (item)
  "What ITEM replaces, as (BEG . END)."
  (if-let* ((range (plist-get item :range))) (eglot-range-region range) (cons (point) (point))))

(defun fimls--show (items)
  "Draw the first of ITEMS; nil if it does not go on from the text at point."
  (fimls-dismiss)
  (pcase-let* ((item (car items)) (`(,beg . ,end) (and item (fimls--region item)))
               (typed (and item (<= beg (point) end) (buffer-substring-no-properties beg (point)))))
    (when (and typed (string-prefix-p typed (plist-get item :insertText)))
      (let ((ghost (propertize (substring (plist-get item :insertText) (length typed)) 'face 'fimls-ghost)))
        (unless (string-empty-p ghost) (put-text-property 0 1 'cursor t ghost))
        (setq fimls--items items fimls--overlay (make-overlay (point) end))
        (overlay-put fimls--overlay 'priority 100)
        (overlay-put fimls--overlay (if (= (point) end) 'after-string 'display) ghost)
        (setq fimls--exit (set-transient-map fimls-active-map t #'fimls--clear))
        (jsonrpc-notify (eglot-current-server) :textDocument/didShowCompletion (list :item item))
        t))))

(defun fimls--clear ()
  (when fimls--overlay (delete-overlay fimls--overlay))
  (setq fimls--overlay nil fimls--items nil fimls--exit nil))

(defun fimls-dismiss ()
  "Take the suggestion away."
  (interactive)
  (when fimls--exit (funcall fimls--exit)))

(defun fimls-next ()
  "Show the next alternative."
  (interactive)
  (fimls--show (append (cdr fimls--items) (list (car fimls--items)))))

(defun fimls-accept ()
  "Put the suggestion into the text."
  (interactive)
  (pcase-let* ((item (car fimls--items)) (`(,beg . ,end) (fimls--region item)))
    (fimls-dismiss)
    (delete-region beg end)
    (goto-char beg)
    (insert (plist-get item :insertText))
    (when-let* ((command (plist-get item :command)))
      (eglot--signal-textDocument/didChange)
      (jsonrpc-async-request (eglot-current-server) :workspace/executeCommand
                             (list :command (plist-get command :command) :arguments (plist-get command :arguments))
                             :success-fn #'ignore :error-fn #'ignore))))

(provide 'fimls)
;;; fimls.el ends here

{{- define "leasehold.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "leasehold.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "leasehold.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: leasehold
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Sections of keys as TOML; strings, numbers, truth values and lists of them. */}}
{{- define "leasehold.toml" -}}
{{- range $section, $keys := . }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Labels of one role of the index: what there is, and the role's name. */}}
{{- define "leasehold.role" -}}
app.kubernetes.io/name: leasehold-index
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* The pod of such a role. `env` takes each value as it is, from a field, or from the secret. */}}
{{- define "leasehold.pod" -}}
{{- $index := .root.Values.index -}}
metadata:
  labels:
    {{- include "leasehold.role" (list .root .role) | nindent 4 }}
  annotations:
    checksum/settings: {{ toJson $index.settings | sha256sum }}
spec:
  serviceAccountName: {{ include "leasehold.name" .root }}-index
  automountServiceAccountToken: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    fsGroup: 10001
    seccompProfile:
      type: RuntimeDefault
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # One machine less is one instance less.
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "leasehold.role" (list .root .role) | nindent 10 }}
  containers:
    - name: leasehold
      image: {{ include "leasehold.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- toYaml (concat .args (list "--state=/state" "--settings=/settings/leasehold.toml")) | nindent 8 }}
      env:
        - {name: HOME, value: /tmp}
        - {name: LEASEHOLD_OPS__HOST, value: 0.0.0.0}
        {{- range .env }}
        - name: {{ .name }}
          {{- if .key }}
          valueFrom:
            secretKeyRef:
              name: {{ required "index.secret: a secret with the keys index, schedule, token, user and password" $index.secret }}
              key: {{ .key }}
          {{- else if .field }}
          valueFrom:
            fieldRef: {fieldPath: {{ .field }}}
          {{- else }}
          value: {{ .value | quote }}
          {{- end }}
        {{- end }}
      ports:
        - {{ toJson .port }}
        - {name: ops, containerPort: 29995}
      startupProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 2
        failureThreshold: 90
      livenessProbe:
        httpGet: {path: /livez, port: ops}
        periodSeconds: 10
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: ops}
        periodSeconds: 5
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - {name: state, mountPath: /state}
        - {name: settings, mountPath: /settings, readOnly: true}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: state
      emptyDir: {}
    - name: settings
      configMap:
        name: {{ include "leasehold.name" .root }}-index
    - name: tmp
      emptyDir: {}
  {{- with $index.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $index.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

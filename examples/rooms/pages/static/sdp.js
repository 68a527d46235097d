/** The fingerprint of the certificate in a description, which differs between connections; undefined without one. */
export function fingerprint(description) {
  return /^a=fingerprint:(.*)$/m.exec(description?.sdp ?? "")?.[1].trim();
}

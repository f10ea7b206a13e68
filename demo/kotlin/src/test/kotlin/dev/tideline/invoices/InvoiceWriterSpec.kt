/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.invoices

import dev.tideline.core.Events
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Money
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.Tonnes
import dev.tideline.core.into
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId
import dev.tideline.ships.ShipKind

private val LINER = Ship(
    id = ShipId("9074729"),
    name = "Northern Liner",
    kind = ShipKind.CONTAINER,
    length = Metres(100.0),
    draught = Metres(8.0),
    deadweight = Tonnes(20_000.0),
)

private val VISIT = Visit(
    ship = LINER,
    stay = Span.ofHours(30),
    tugs = 2,
    piloted = true,
    containersMoved = 150,
)

private fun writerAt(clock: StillClock, events: Events, invoices: InvoiceStore): InvoiceWriter =
    InvoiceWriter(
        invoices = invoices,
        tariff = Tariff(
            rules = listOf(
                QuayRule(perMetre = Money.ofEuros(2)),
                ServiceRule(pilot = Money.ofEuros(300), tug = Money.ofEuros(250)),
            ),
            discounts = mapOf(ShipKind.CONTAINER to 0.1),
        ),
        events = events,
        clock = clock,
    )

/** Describes how visits are billed and how payments are booked. */
class InvoiceWriterSpec : Spec({
    val clock = StillClock(Moment.of(day = 20, hour = 9))

    case("a started day is charged like a full one and the discount comes last") {
        val writer = given("a writer without invoices") { writerAt(clock, Events(), InMemoryInvoiceStore()) }
        val invoice = writer.issue(VISIT)
        expect(invoice.into { it.total }).toGive(Money.ofEuros(1_080))
        expect(invoice.into { it.lines.last().amount }).toGive(Money.ofEuros(-120))
    }

    case("an invoice is settled by its last payment") {
        val events = given("an empty event log") { Events() }
        val writer = writerAt(clock, events, InMemoryInvoiceStore())
        val settled = writer.issue(VISIT)
            .then { writer.pay(it.id, Money.ofEuros(80)) }
            .then { writer.pay(it.id, Money.ofEuros(1_000)) }
        expect(settled.into { it.isSettled }).toGive(true)
        expect(events.countOf<InvoiceSettled>()).toBe(1)
    }

    case("nobody may pay more than what is open") {
        val writer = given("a writer without invoices") { writerAt(clock, Events(), InMemoryInvoiceStore()) }
        val outcome = writer.issue(VISIT).then { writer.pay(it.id, Money.ofEuros(2_000)) }
        expect(outcome).toBeRefusedFor(Reason.CONFLICT)
    }
})
